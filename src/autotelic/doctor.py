"""What this machine can do: versions, device, simulator, rendering, and their speed.

Each check runs in a process of its own, so that a crash (two OpenGL drivers in one process, a
missing library) is reported and not suffered. ``python -m autotelic.doctor NAME`` runs one check.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ctypes.util import find_library
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from . import __version__

PACKAGES = ("torch", "transformers", "diffusers", "accelerate", "gymnasium", "mujoco", "metaworld")
GL_LIBRARIES = {"osmesa": ("OSMesa", "libosmesa6"), "egl": ("EGL", "libegl1")}
"""Library and Debian package of each off-screen OpenGL backend of MuJoCo."""

_SECONDS = 1.0
"""How long a speed is measured."""


@dataclass(frozen=True)
class Finding:
    """One line of the report: ``good`` is None where nothing can be wrong."""

    name: str
    good: bool | None
    text: str


def findings() -> Iterator[Finding]:
    """Every check in turn, the quick ones first. The first lines import nothing heavy."""
    yield Finding("autotelic", None, f"{__version__}, Python {platform.python_version()}, {platform.platform()}")
    yield Finding("cores", None, f"{len(os.sched_getaffinity(0)) if _linux() else os.cpu_count()}")
    for package in PACKAGES:
        yield _installed(package)
    yield _in_process("device")
    yield _in_process("simulation")
    yield from (_rendering(backend) for backend in GL_LIBRARIES if _linux())


def healthy(found: list[Finding]) -> bool:
    """Whether everything that training needs is there. Rendering is not needed: one backend or none will do."""
    return all(finding.good is not False for finding in found if not finding.name.startswith("rendering"))


def _linux() -> bool:
    return sys.platform == "linux"


def _installed(package: str) -> Finding:
    try:
        return Finding(package, True, version(package))
    except PackageNotFoundError:
        return Finding(package, False, "not installed: pip install autotelic")


def _rendering(backend: str) -> Finding:
    found = _in_process("rendering", MUJOCO_GL=backend)
    library, package = GL_LIBRARIES[backend]
    missing = not found.good and find_library(library) is None
    text = f"lib{library} is missing: apt-get install {package}" if missing else found.text
    return Finding(f"rendering ({backend})", found.good, text)


def _in_process(check: str, **environment: str) -> Finding:
    """The finding of a check that runs in its own process; its last line of output is the text."""
    command = [sys.executable, "-m", "autotelic.doctor", check]
    try:
        done = subprocess.run(
            command, env=os.environ | environment, capture_output=True, text=True, errors="replace", timeout=180
        )
    except subprocess.TimeoutExpired:
        return Finding(check, False, "no answer within 180 s")
    if done.returncode == 0:
        return Finding(check, True, done.stdout.strip().rpartition("\n")[2])
    if done.returncode < 0:
        return Finding(check, False, f"crashed with {signal.Signals(-done.returncode).name}")
    return Finding(check, False, done.stderr.strip().rpartition("\n")[2])


def _device() -> str:
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    side = 1024
    a = torch.rand(side, side)
    rate = _per_second(lambda: a @ a)
    return f"{device}, {torch.get_num_threads()} threads, {2 * side**3 * rate / 1e9:.0f} GFLOP/s on the CPU"


def _simulation() -> str:
    import numpy as np

    from .envs.simulator import make_simulator

    simulator = make_simulator("metaworld/drawer-open-v3")
    simulator.reset(0)
    start, chunk = simulator.save(), np.zeros((5, simulator.action_size), np.float32)

    def fifty_steps() -> None:
        simulator.restore(start)
        for _ in range(10):
            simulator.step(chunk)

    return f"metaworld/drawer-open-v3, {50 * _per_second(fifty_steps):,.0f} environment steps/s on one core"


def _rendered() -> str:
    from typing import get_args

    from .envs.simulator import Quality, View, make_simulator

    simulator = make_simulator("metaworld/drawer-open-v3")
    simulator.reset(0)
    rates = []
    for quality in get_args(Quality):
        view = View(64, quality)
        if not simulator.frame(view).any():
            raise RuntimeError(f"the picture of quality {quality!r} is black")
        rates.append(f"{_per_second(lambda view=view: simulator.frame(view)):.0f} {quality}")  # type: ignore[misc]
    simulator.close()
    return f"works, frames/s at 64 px: {', '.join(rates)}"


def _per_second(call: Callable[[], object]) -> float:
    call()
    calls, start = 0, time.perf_counter()
    while time.perf_counter() - start < _SECONDS:
        call()
        calls += 1
    return calls / (time.perf_counter() - start)


_CHECKS = {"device": _device, "simulation": _simulation, "rendering": _rendered}

if __name__ == "__main__":
    print(_CHECKS[sys.argv[1]]())
