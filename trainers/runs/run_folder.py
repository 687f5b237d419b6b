"""The run folder: everything that a run writes, in formats that any tool can read.

::

    RUN/config.json          recipe, command, config, versions, created
        metrics.jsonl        one line per iteration
        policy/              the weights as the last "best" checkpoint has them
        gate.jsonl, ...      further records, one JSON object per line, each with its "iteration"
        checkpoints/         iteration-000004/ ..., and the pointers "latest" and "best"
        evaluations/*.json   outcomes on fixed episodes
        rollouts/            rollouts kept after an error
        samples/             images, text, videos at fixed seeds
        report.html, README.md

Lines are appended and flushed; everything else is replaced atomically. A line torn by a kill is
ignored by readers and dropped by ``rewind``.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ... import __version__
from ...errors import UsageError, unknown
from ...json_files import object_of, read_object, value_of
from ...numbers import plain
from ...types import Rollout
from ...untrusted import whole
from . import checkpoint
from .card import card_text
from .checkpoint import CheckpointError
from .records import rollouts_from_state, rollouts_state

LIBRARIES = ("torch", "transformers", "diffusers", "accelerate", "numpy", "gymnasium", "mujoco", "metaworld")


class RunFolder:
    """A run on disk; make one with ``create`` or ``open``."""

    def __init__(self, path: Path, config_file: Mapping[str, Any]) -> None:
        self.path = path
        self.recipe: str = config_file["recipe"]
        self.config: dict[str, Any] = config_file["config"]
        self.command: str = config_file["command"]
        self._unwritten: dict[str, str] = {}

    @classmethod
    def create(cls, path: str | Path, *, recipe: str, config: Mapping[str, Any], command: str) -> RunFolder:
        """Start a run in a new or empty folder.

        Raises:
            UsageError: the folder holds another run or other files.
        """
        path = Path(path)
        if (path / "config.json").exists():
            raise UsageError(
                f"{path} holds another run: continue it with `autotelic resume {path}` or choose another --output-dir"
            )
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UsageError(f"{path} is not an empty folder: choose another --output-dir")
        path.mkdir(parents=True, exist_ok=True)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        content = {"recipe": recipe, "command": command, "config": config, "versions": versions(), "created": created}
        _write_json(path / "config.json", content)
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """A run that exists.

        Raises:
            UsageError: there is no run at ``path``; the message names the nearest ones beside it.
        """
        path = Path(path)
        if not (path / "config.json").is_file():
            raise unknown("run", str(path), (str(found.parent) for found in path.parent.glob("*/config.json")))
        return cls(path, read_object(path / "config.json", "recipe", "config", "command"))

    def describe(self, **facts: Any) -> None:
        """Add facts to config.json that are known only once the run is built, such as ``label_account``."""
        self.write_json("config", self.read_json("config") | facts)

    # Metrics and records

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Append the metrics of an iteration to metrics.jsonl.

        Names group by prefix ("success/push-v3"). Those under "time/" are wall-clock figures and may
        differ between two runs that are otherwise equal to the bit.
        """
        self.append("metrics", {"iteration": iteration} | {name: float(value) for name, value in metrics.items()})

    def metrics(self) -> list[dict[str, Any]]:
        """Every line of metrics.jsonl: {"iteration": int, name: float, ...}, NaN and infinities restored."""
        return [
            {k: v if k == "iteration" else math.nan if v is None else float(v) for k, v in record.items()}
            for record in self.read("metrics")
        ]

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """Append a record with an "iteration" to NAME.jsonl; NaN is written as null, infinities as strings.

        Where the disk is full the record waits for the next one of its name.
        """
        if "iteration" not in record:
            raise ValueError(f'a record of {name}.jsonl needs an "iteration", got {sorted(record)}')
        lines = self._unwritten.pop(name, "") + json.dumps(plain(record), allow_nan=False) + "\n"
        path = self.path / f"{name}.jsonl"
        size = path.stat().st_size if path.exists() else 0
        try:
            with path.open("a") as file:
                file.write(lines)
        except OSError:
            self._unwritten[name] = lines
            if path.exists():
                os.truncate(path, size)  # a torn line would swallow the next one

    def read(self, name: str) -> list[dict[str, Any]]:
        """Every whole record of NAME.jsonl; an empty list where there is no such file."""
        path = self.path / f"{name}.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return [object_of(line, f"{path} line {number}") for number, line in enumerate(lines, 1) if line.strip()]

    def write_json(self, name: str, value: Any) -> Path:
        """Write NAME.json atomically; arrays and tensors become lists, NaN null, infinities strings."""
        path = self._json_path(name)
        _write_json(path, value)
        return path

    def read_json(self, name: str) -> Any:
        """The content of NAME.json; None where there is no such file."""
        path = self._json_path(name)
        return value_of(path.read_bytes(), str(path)) if path.exists() else None

    def evaluations(self) -> dict[str, dict[str, Any]]:
        """Every evaluation by name ("before", "iteration-000010", "after"), in the order of their iterations."""
        names = sorted(path.stem for path in self.path.glob("evaluations/*.json"))
        found = {name: read_object(self._json_path(f"evaluations/{name}")) for name in names}
        order = {"before": -1, "after": 1}
        return dict(sorted(found.items(), key=lambda item: (item[1].get("iteration", 0), order.get(item[0], 0))))

    # Checkpoints

    def save_checkpoint(
        self, iteration: int, state: Mapping[str, Any], *, best: bool = False, keep: int = 2, hold: str = ""
    ) -> Path:
        """Write checkpoints/iteration-NNNNNN, point "latest" (and "best") at it, and prune.

        Args:
            iteration: how many iterations are done; resume drops the records of later ones.
            state: what ``checkpoint.save`` takes.
            best: this is the best one so far.
            keep: how many of the newest stay; the best and the latest always do.
            hold: the name of one that stays as well.
        """
        path = self._checkpoints / checkpoint_name(iteration)
        checkpoint.save(path, state)
        for pointer in ("best", "latest") if best else ("latest",):
            _write_text(self._checkpoints / pointer, path.name + "\n")
        protected = {hold, *map(self._pointed, ("best", "latest")), *self.checkpoints()[-keep:]}
        for found in self._checkpoints.iterdir():
            if found.is_dir() and found.name not in protected:
                shutil.rmtree(found)
        return path

    def load_checkpoint(self, which: str = "latest") -> dict[str, Any]:
        """The state of "latest", "best" or a checkpoint's name.

        Raises:
            CheckpointError: it is missing or must not be read.
        """
        return checkpoint.load(self.checkpoint_path(which))

    def checkpoint_path(self, which: str = "latest") -> Path:
        """Where "latest", "best" or a named checkpoint is."""
        if which not in ("latest", "best"):
            return self._checkpoints / which
        name = self._pointed(which)
        if name is None:
            there = ", ".join(self.checkpoints()) or "none"
            raise CheckpointError(f"run {self.path} has no {which} checkpoint; there is {there}")
        return self._checkpoints / name

    def checkpoints(self) -> list[str]:
        """Names of the checkpoints, oldest first."""
        return sorted(path.name for path in self._checkpoints.glob("iteration-*") if path.is_dir())

    def rewind(self, iteration: int) -> None:
        """Return to the moment after ``iteration``: drop later records and checkpoints."""
        for path in self.path.glob("*.jsonl"):
            kept = [record for record in self.read(path.stem) if record["iteration"] <= iteration]
            _write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        for name in self.checkpoints():
            if name > checkpoint_name(iteration):
                shutil.rmtree(self._checkpoints / name)
        for pointer in ("best", "latest"):
            target = self._pointed(pointer)
            if target is not None and not (self._checkpoints / target).is_dir():
                (self._checkpoints / pointer).unlink()

    # Samples, rollouts, card

    @property
    def samples(self) -> Path:
        """The folder of samples at fixed seeds; the report looks in its videos/ and images/."""
        path = self.path / "samples"
        path.mkdir(exist_ok=True)
        return path

    def save_rollouts(self, name: str, rollouts: Sequence[Rollout]) -> Path:
        """Keep rollouts under rollouts/NAME (see ``records`` for what is kept of them)."""
        path = self.path / "rollouts" / name
        checkpoint.save(path, rollouts_state(rollouts))
        return path

    def load_rollouts(self, name: str | Path) -> list[Rollout]:
        """Rollouts by the name given to ``save_rollouts``, or by the path it returned."""
        return rollouts_from_state(checkpoint.load(self.path / "rollouts" / Path(name).name))

    def write_card(self, citation: Sequence[str] = ()) -> Path:
        """Write README.md, the model card of the run.

        Args:
            citation: what to cite, one line each (the paper of the recipe, the simulator, ...).
        """
        path = self.path / "README.md"
        _write_text(path, card_text(self, citation))
        return path

    def _json_path(self, name: str) -> Path:
        return self.path / f"{name.removesuffix('.json')}.json"

    @property
    def _checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def _pointed(self, pointer: str) -> str | None:
        path = self._checkpoints / pointer
        return path.read_text().strip() if path.exists() else None


def versions() -> dict[str, str]:
    """Versions of autotelic, Python and the libraries that shape a result."""
    found = {"autotelic": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def checkpoint_name(iteration: int) -> str:
    return f"iteration-{iteration:06d}"


def _write_json(path: Path, value: Any) -> None:
    _write_text(path, json.dumps(plain(value), indent=1, allow_nan=False) + "\n")


def _write_text(path: Path, text: str) -> None:
    """Replace a file's content atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as file:
        file.write(whole(text))
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
