"""Write constraints.txt: the exact versions that `make setup` installs, as pyproject's ranges resolve today.

Run by `make constraints` with the Python that is tried, 3.11; for the others the versions are only resolved, from
wheels, which tells that they exist and fit each other, and nothing more.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OTHERS = ("3.12", "3.13")
FOLLOW_TORCH = ("nvidia-", "cuda-", "triton")  # torch pins them itself, and only for Linux
FROM_SOURCE = ("num2words",)  # its docopt has no wheel, and pip resolves for another Python from wheels alone
HEAD = """\
# What `make setup` installs and `make test` tries, as pyproject's ranges resolved; written by `make constraints`.
# Tried on Python {tried}. For {others} only resolved, not tried. CUDA's libraries follow torch and are not named.
"""


def resolved(pip: Path, report: Path, *arguments: str) -> dict[str, str]:
    """Versions by name that pip would install into an empty environment."""
    dry = ("install", "--dry-run", "--ignore-installed", "-qqq", "--report", str(report))
    subprocess.run([pip, *dry, *arguments], cwd=ROOT, check=True)
    parts: list[dict[str, Any]] = [part["metadata"] for part in json.loads(report.read_text())["install"]]
    names = {part["name"].lower().replace("_", "-"): part["version"].partition("+")[0] for part in parts}
    return {name: names[name] for name in sorted(names) if name != "autotelic" and not name.startswith(FOLLOW_TORCH)}


def requirements(python: str) -> list[str]:
    """What pyproject asks for on another Python; pip itself reads markers for the Python that it runs on."""
    from pip._vendor.packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [Requirement(line) for line in project["dependencies"] + project["optional-dependencies"]["dev"]]
    here = {"python_version": python, "python_full_version": f"{python}.0"}
    fits = [r for r in asked if r.name not in FROM_SOURCE and (r.marker is None or r.marker.evaluate(here))]
    return [f"{r.name}{r.specifier}" for r in fits]


def main() -> None:
    tried = f"{sys.version_info.major}.{sys.version_info.minor}"
    with tempfile.TemporaryDirectory() as folder:
        venv.create(Path(folder) / "venv", with_pip=True)
        pip, report = Path(folder) / "venv/bin/pip", Path(folder) / "report.json"
        sys.path += map(str, Path(folder).glob("venv/lib/*/site-packages"))
        versions = resolved(pip, report, "-e", ".[dev]")
        lines = "".join(f"{name}=={version}\n" for name, version in versions.items())
        (ROOT / "constraints.txt").write_text(HEAD.format(tried=tried, others=" and ".join(OTHERS)) + lines)
        for other in OTHERS:
            foreign = ("--python-version", other, "--only-binary=:all:", "--target", f"{folder}/{other}")
            count = len(resolved(pip, report, *foreign, "-c", "constraints.txt", *requirements(other)))
            print(f"constraints: {count} packages resolve for Python {other}")


if __name__ == "__main__":
    main()
