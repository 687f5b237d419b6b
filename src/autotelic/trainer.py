"""``Trainer``: a run from a script or a notebook, which is a run folder like any other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from .errors import UsageError, unknown
from .families import name_of
from .gl import use_before_gl
from .plugins import register
from .recipes import find_recipe
from .running import create, free_folder, rebuild

if TYPE_CHECKING:
    from .trainers.loop import Experiment
    from .trainers.runs.callbacks import Callback

KINDS: Mapping[str, str] = {
    "rewards": "reward",
    "judge": "reward",
    "objective": "objective",
    "advantage": "advantage",
    "curriculum": "curriculum",
    "gate": "gate",
}
"""Fields of a config that take an object as well as its name."""
FILES = ("data", "eval_data", "pairs")
"""Fields that take rows as well as a file."""
DATA = "data"
"""Folder of the rows in a run."""


class Trainer:
    """A run of a recipe.

        def brief(completions, **columns):
            return [-len(text) for text in completions]

        trainer = Trainer("vlm/grpo", model="Qwen/Qwen2.5-0.5B-Instruct", data=dataset, rewards=brief, max_steps=20)
        trainer.train()

    Args:
        recipe: a name, FILE.py or package.module, as of ``autotelic run``.
        output_dir: the run's folder; None takes the first free runs/NAME-n.
        use: plugins to import first, as of ``--use``.
        callbacks: told of the run while it goes on.
        debug: begin from the recipe's preset of two small steps.
        config: fields of the recipe's config by the names of the flags. Where a flag takes the name of a reward, an
            objective, an advantage, a curriculum or a gate, the object itself will do; where it takes a file of rows, a
            list of dictionaries or a ``datasets.Dataset`` will do, and is written into the run's folder.

    Objects that are given are known by their names in this process alone: to go on with such a run from the command
    line, put them into a file that registers them and name it with ``--use``.

    Raises:
        UsageError: bad input, in one line.
    """

    def __init__(
        self,
        recipe: str = "vlm/grpo",
        *,
        output_dir: str | Path | None = None,
        use: Sequence[str] = (),
        callbacks: Sequence[Callback] = (),
        debug: bool = False,
        **config: Any,
    ) -> None:
        _use(use)
        chosen = find_recipe(recipe)
        module = chosen.load()
        base = module.Config.tiny() if debug else module.Config()
        known = [field.name for field in fields(base)]
        if strange := [name for name in config if name not in known]:
            raise unknown(f"field of {chosen.name}", strange[0], known)
        rows = {name: config.pop(name) for name in FILES if name in config and not isinstance(config[name], str | Path)}
        objects: list[tuple[str, str]] = []
        values = {name: _named(name, value, objects) for name, value in config.items()}
        values |= {name: str(value) for name, value in values.items() if isinstance(value, Path)}
        path = Path(output_dir) if output_dir is not None else free_folder(chosen.name)
        values |= {name: f"{DATA}/{name}.jsonl" for name in rows}
        command = f"Trainer({chosen.name!r})"
        self.folder, new = create(path, chosen.name, _replaced(base, values), list(use), command, inside=rows)
        try:
            if new and objects:
                self.folder.describe(objects=objects)
            for name, several in rows.items():
                write_rows(several, self.folder.path / DATA / f"{name}.jsonl")
            self.experiment = self._built(callbacks)
        except BaseException:
            if new:
                shutil.rmtree(self.folder.path, ignore_errors=True)
            raise
        self.resume = False

    @classmethod
    def open(cls, path: str | Path, *, use: Sequence[str] = (), callbacks: Sequence[Callback] = ()) -> Self:
        """A run that exists: ``train()`` continues it from its latest checkpoint."""
        from .trainers.runs.run_folder import RunFolder

        _use(use)
        self = cls.__new__(cls)
        self.folder = RunFolder.open(path)
        self.experiment = self._built(callbacks)
        self.resume = bool(self.folder.checkpoints())
        return self

    def _built(self, callbacks: Sequence[Callback]) -> Experiment:
        experiment = rebuild(self.folder)
        experiment.callbacks = (*experiment.callbacks, *callbacks)
        return experiment

    def train(self) -> Self:
        """Run to the end, or until Ctrl-C, after which ``train()`` of ``Trainer.open`` goes on; writes the report."""
        from .trainers.distributed import is_main
        from .trainers.loop import Diverged, train
        from .trainers.runs.report import write_report

        diverged: Diverged | None = None
        try:
            train(self.experiment, self.folder, resume=self.resume)
        except Diverged as error:  # with what is good evaluated and saved
            diverged = error
        self.resume = True
        if is_main():
            write_report(self.folder)
        if diverged is not None:
            raise diverged
        return self

    def evaluate(self) -> Mapping[str, Any]:
        """The evaluation of the actor as it is now, see ``trainers.runs.report``."""
        return self.experiment.evaluate(self.actor)

    @property
    def actor(self) -> Any:
        """What acts and is trained: the last stage's actor."""
        return self.experiment.stages[-1].actor

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """A row per iteration so far."""
        return self.folder.metrics()

    @property
    def evaluations(self) -> dict[str, dict[str, Any]]:
        """Evaluations so far by name ("before", "after")."""
        return self.folder.evaluations()

    @property
    def report(self) -> Path:
        """The report, once there is one."""
        return self.folder.path / "report.html"

    def close(self) -> None:
        """Release simulators and other workers."""
        self.experiment.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _repr_html_(self) -> str:
        """What a notebook shows of the run: what it reached so far."""
        from .trainers.runs.report import in_short

        return str(in_short(self.folder))

    def __repr__(self) -> str:
        return f"Trainer({self.folder.recipe!r}, output_dir={str(self.folder.path)!r})"


def _use(places: Sequence[str]) -> None:
    use_before_gl(list(places))


def _replaced(base: Any, values: Mapping[str, Any]) -> Any:
    from dataclasses import replace

    return replace(base, **values)


def _named(name: str, value: Any, objects: list[tuple[str, str]]) -> Any:
    """A config's value: an object that has a kind is registered and becomes its name, which ``objects`` gets too."""
    if name not in KINDS:
        return tuple(value) if isinstance(value, list) else value
    if name == "rewards":
        several = value if isinstance(value, list | tuple) else [value]
        return tuple(_name_of(KINDS[name], each, objects) for each in several)
    return _name_of(KINDS[name], value, objects)


def _name_of(kind: str, value: Any, objects: list[tuple[str, str]]) -> str:
    if isinstance(value, str):
        return value
    name = name_of(value).strip("<>")
    register(kind, name, value)
    objects.append((kind, name))
    return name


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path) -> Path:
    """Rows as JSON lines; pictures (PIL) become PNG files beside them.

    Args:
        rows: dictionaries, or a ``datasets.Dataset``: prompt (text or messages), image or images, answer, category, and
            whatever columns rewards ask for.

    Raises:
        UsageError: a row that is no dictionary, or a value that JSON cannot hold.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows, 1):
            if not isinstance(row, Mapping):
                raise UsageError(f"row {number} of the data is a {type(row).__name__}: rows are dictionaries")
            try:
                file.write(json.dumps({str(k): _stored(v, path, f"{number}-{k}") for k, v in row.items()}) + "\n")
            except TypeError as error:
                raise UsageError(f"row {number} of the data: {error}") from error
    return path


def _stored(value: Any, path: Path, name: str) -> Any:
    from PIL import Image

    if isinstance(value, Image.Image):
        value.save(path.parent / f"{path.stem}-{name}.png")
        return f"{path.stem}-{name}.png"
    if isinstance(value, Mapping):
        return {str(k): _stored(v, path, f"{name}-{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_stored(v, path, f"{name}-{i}") for i, v in enumerate(value)]
    return value.tolist() if hasattr(value, "tolist") else value
