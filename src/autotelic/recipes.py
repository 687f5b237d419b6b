"""The published systems that come with the package, found by looking into the recipes folders.

A recipe is a module ``autotelic.<modality>.recipes.<name>``, called ``<modality>/<name>`` on the
command line. Importing it imports no torch. It has

* a docstring, whose first line is the system's claim in one sentence,
* ``Config``, a frozen dataclass whose fields say where their numbers come from; ``eval_episodes`` and
  ``eval_offset`` (episodes per task, initial states to skip) are what ``autotelic eval`` changes,
* ``debug() -> Config``, a preset of two small steps,
* ``build(config, folder) -> Experiment``, which chooses the six nouns.
"""

from __future__ import annotations

import ast
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from .errors import UsageError, unknown

PACKAGE = Path(__file__).parent
MODALITIES = ("vlm", "vla", "diffusion")
_PAPER = re.compile(r"arXiv[: ]\s*(\d{4}\.\d{4,5})", re.IGNORECASE)


@dataclass(frozen=True)
class Recipe:
    """What is known of a recipe before its module is imported.

    Attributes:
        name: as on the command line, such as "vla/evolve_vla".
        module: as Python imports it.
        claim: the first line of its docstring.
        paper: its first arXiv id; empty for systems of this project.
    """

    name: str
    module: str
    claim: str
    paper: str

    def load(self) -> Any:
        """The recipe's module, imported."""
        return import_module(self.module)


def all_recipes() -> dict[str, Recipe]:
    """Every recipe by name. Files are read, not run, so that one broken recipe hides no other."""
    found = {}
    for modality in MODALITIES:
        for path in sorted((PACKAGE / modality / "recipes").glob("[!_]*.py")):
            docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
            paper = _PAPER.search(docstring)
            found[f"{modality}/{path.stem}"] = Recipe(
                name=f"{modality}/{path.stem}",
                module=f"{__package__}.{modality}.recipes.{path.stem}",
                claim=docstring.partition("\n")[0],
                paper=paper[1] if paper else "",
            )
    return found


def find_recipe(name: str) -> Recipe:
    """The recipe of that name. Raises UsageError naming the nearest ones."""
    known = all_recipes()
    if name not in known:
        raise unknown("recipe", name, known)
    return known[name]


def config_from_json(kind: Any, value: Any, where: str = "config") -> Any:
    """A value of type ``kind`` (dataclasses, tuples, paths, plain values) from what JSON kept of it.

    Raises UsageError if a dataclass lost or gained a field since, naming it.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return config_from_json(arguments[0], value, where)
    if origin in (Union, types.UnionType):
        member = next(a for a in arguments if a is not types.NoneType)
        return None if value is None else config_from_json(member, value, where)
    if origin is tuple:
        members = [arguments[0]] * len(value) if Ellipsis in arguments else arguments
        return tuple(config_from_json(m, v, where) for m, v in zip(members, value, strict=True))
    if is_dataclass(kind):
        return _dataclass_from_json(kind, value, where)
    return Path(value) if kind is Path else value


def _dataclass_from_json(kind: Any, value: Mapping[str, Any], where: str) -> Any:
    names = {field.name for field in fields(kind)}
    if changed := sorted(names ^ value.keys()):
        some = ", ".join(changed[:6]) + (f" and {len(changed) - 6} more" if len(changed) > 6 else "")
        raise UsageError(f"{where} was written by another version of {kind.__qualname__}: {some} differ; run it anew")
    hints = get_type_hints(kind, include_extras=True)
    return kind(**{name: config_from_json(hints[name], value[name], f"{where}.{name}") for name in value})
