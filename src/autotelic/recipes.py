"""Recipes: the published systems that come with the package, and modules of one's own that stand anywhere.

A recipe is a module ``autotelic.<modality>.recipes.<name>``, called ``<modality>/<name>`` on the command line; or a
FILE.py, a package.module, or a module registered as "recipe". Importing it imports no torch. It has

* a docstring, whose first line is the system's claim in one sentence,
* ``Config``, a frozen dataclass whose fields say where their numbers come from; ``eval_episodes`` and
  ``eval_offset`` (episodes per task, initial states to skip) are what ``autotelic eval`` changes; its class method
  ``tiny()``, which ``RunConfig`` has, is the preset of two small steps that ``--debug`` takes,
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
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin, get_type_hints

from . import plugins
from .errors import UsageError, unknown
from .gl import use_before_gl
from .plugin_files import absolute, check_copies

if TYPE_CHECKING:
    from .trainers.runs.run_folder import RunFolder

PACKAGE = Path(__file__).parent
MODALITIES = ("vlm", "vla", "diffusion")
_PAPER = re.compile(r"arXiv[: ]\s*(\d{4}\.\d{4,5})", re.IGNORECASE)


@dataclass(frozen=True)
class Recipe:
    """What is known of a recipe before its module is imported.

    Attributes:
        name: as on the command line, such as "vla/evolve_vla".
        module: as Python imports it; of one's own, FILE.py, package.module or the registered name.
        claim: the first line of its docstring.
        paper: its first arXiv id; empty for systems of this project.
    """

    name: str
    module: str
    claim: str
    paper: str

    def load(self) -> Any:
        """The recipe's module, imported.

        Raises:
            UsageError: one of one's own that cannot be imported, or lacks something.
        """
        if self.module.startswith(f"{__package__}."):
            return import_module(self.module)
        module = plugins.named("recipe", self.module)
        if not (isinstance(module.Config, type) and is_dataclass(module.Config)):
            raise UsageError(f"{plugins.where(module)}: Config is no dataclass")
        if "tiny" not in dir(module.Config):
            raise UsageError(f"{plugins.where(module)}: Config has no tiny(): let it inherit RunConfig's, or write one")
        return module


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
    for name in plugins.names("recipe"):
        found[name] = Recipe(name, name, _claim(plugins.table("recipe")[name]), "")
    return found


def _claim(module: Any) -> str:
    return module if isinstance(module, str) else (module.__doc__ or "").strip().partition("\n")[0]


def find_recipe(name: str) -> Recipe:
    """The recipe of that name, in that FILE.py or in that package.module.

    Raises:
        UsageError: there is none; the nearest ones are named.
    """
    known = all_recipes()
    if name in known:
        return known[name]
    if name.endswith(".py") or ("." in name and "/" not in name):
        return Recipe(name, name, "", "")
    raise UsageError(f"{unknown('recipe', name, known)} (your own: FILE.py or package.module)")


def recipe_of(folder: RunFolder) -> tuple[Any, Any]:
    """The module and the config of a run; plugins that it uses are imported, copied files from its own folder.

    Raises:
        UsageError: a plugin is missing or cannot be imported, or the config is another version's.
    """
    content = folder.read_json("config")
    check_copies(content.get("plugins", {}), folder.path)
    use_before_gl(absolute(content.get("use", []), folder.path))
    for kind, name in content.get("objects", []):
        if name not in plugins.names(kind):
            raise UsageError(
                f'the {kind} "{name}" of {folder.path} was given to a Trainer as an object: register it in a file, and '
                "name that with --use"
            )
    module = find_recipe(absolute(folder.recipe, folder.path)).load()
    return module, config_from_json(module.Config, absolute(folder.config, folder.path))


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
