"""What this machine can do: versions and whether they fit, device, adapters, simulator, rendering, and their speed.

Each check runs in a process of its own, so that a crash (two OpenGL drivers in one process, a
missing library) is reported and not suffered. ``python -m autotelic.doctor NAME`` runs one check.
"""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ctypes.util import find_library
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from . import __version__
from .machine import cores

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PACKAGES = ("torch", "transformers", "diffusers", "accelerate", "peft", "timm", "gymnasium", "mujoco", "metaworld")
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
    yield Finding("cores", None, str(cores()))
    for package in PACKAGES:
        yield _installed(package)
    yield from _pairs()
    yield _in_process("device")
    yield _in_process("adapters")
    yield _in_process("simulation")
    yield from (_rendering(backend) for backend in GL_LIBRARIES if _linux())
    yield from (_extra(name, packages) for name, packages in _extras().items())


def healthy(found: list[Finding]) -> bool:
    """Whether everything that training needs is there: of rendering, one backend or none will do, and no extra."""
    return all(f.good is not False for f in found if not f.name.startswith(("rendering", "extra")))


def _pairs() -> Iterator[Finding]:
    """Every two installed packages that do not fit, from autotelic's requirements on down."""
    known, waiting, strange = {"autotelic"}, ["autotelic"], []
    while waiting:
        package = waiting.pop()
        for requirement in _requirements(package):
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            installed = _version(requirement.name)
            if installed is None:
                strange.append(f"{package} needs {requirement.name}, which is not installed")
            elif not requirement.specifier.contains(installed, prereleases=True):
                wanted = f"{requirement.name} {requirement.specifier}"
                strange.append(f"{package} {_version(package)} needs {wanted}, installed is {installed}")
            if requirement.name not in known and installed is not None:
                known.add(requirement.name)
                waiting.append(requirement.name)
    yield from (Finding("packages", False, text) for text in strange)
    if not strange:
        yield Finding("packages", True, f"{len(known) - 1} fit one another")


def _requirements(package: str) -> list[Requirement]:
    from packaging.requirements import Requirement

    try:
        return [Requirement(line) for line in requires(package) or ()]
    except PackageNotFoundError:
        return []


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _extras() -> dict[str, list[str]]:
    """Extra -> its packages on this Python; the tools of developers are none."""
    extras: dict[str, list[str]] = {}
    for requirement in _requirements("autotelic"):
        for name in re.findall(r'extra == "([^"]+)"', str(requirement.marker or "")):
            if name != "dev" and requirement.marker is not None and requirement.marker.evaluate({"extra": name}):
                extras.setdefault(name, []).append(requirement.name)
    return extras


def _extra(name: str, packages: list[str]) -> Finding:
    """Whether an extra's packages are there and can be imported."""
    missing = [package for package in packages if _version(package) is None]
    if missing:
        return Finding(f"extra {name}", None, f"{missing[0]} is not installed: pip install 'autotelic[{name}]'")
    modules = {package: module for module, several in packages_distributions().items() for package in several}
    found = _in_process("import " + " ".join(modules.get(package, package) for package in packages))
    return Finding(f"extra {name}", found.good, found.text)


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


def _adapters() -> str:
    """A low-rank adapter in a linear layer and in a small language model: both run, and both learn it alone."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.integrations.peft import MIN_PEFT_VERSION

    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 8}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 2}
    language = LlamaForCausalLM(LlamaConfig(**sizes, **heads))
    linear = torch.nn.Sequential(torch.nn.Linear(4, 4))
    for model, target in ((linear, "0"), (language, "q_proj")):
        inject_adapter_in_model(LoraConfig(r=2, target_modules=[target]), model)
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        if not trained or any("lora_" not in name for name in trained):
            raise RuntimeError(f"peft left {len(trained)} parameters to be trained, and not those of its adapter alone")
    linear(torch.zeros(1, 4)).sum().backward()
    language(torch.zeros(1, 2, dtype=torch.long)).logits.sum().backward()
    text = f"peft {version('peft')} puts them into torch and transformers {version('transformers')}"
    if Version(version("peft")) < Version(MIN_PEFT_VERSION):
        return f"{text}, whose own add_adapter wants peft {MIN_PEFT_VERSION} or newer and is not used here"
    return text


def _import(modules: str) -> str:
    for module in modules.split():
        import_module(module)
    return f"{modules} can be imported"


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


_CHECKS = {"device": _device, "adapters": _adapters, "simulation": _simulation, "rendering": _rendered}

if __name__ == "__main__":
    check, _, modules = sys.argv[1].partition(" ")
    print(_import(modules) if check == "import" else _CHECKS[check]())
