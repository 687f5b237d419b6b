"""The house itself: rooms, links, imports, sizes and the wheel."""

from __future__ import annotations

import ast
import graphlib
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import autotelic
from autotelic.recipes import all_recipes

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "autotelic"
ROOMS = ("rewards", "envs", "trainers", "vlm", "vla", "diffusion")
FILES = sorted([*SOURCE.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))])


def module_name(path: Path) -> str:
    inside = path.relative_to(SOURCE if path.is_relative_to(SOURCE) else ROOT).with_suffix("")
    return ".".join(("autotelic", *inside.parts)).removesuffix(".__init__")


def python(code: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_a_root_folder_and_a_link(room: str) -> None:
    assert (SOURCE / room).is_symlink()
    assert (SOURCE / room).resolve() == ROOT / room
    module = import_module(f"autotelic.{room}")
    assert Path(str(module.__file__)).resolve() == ROOT / room / "__init__.py"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_cannot_be_imported_by_its_bare_name(room: str) -> None:
    done = python(f"import {room}")
    assert done.returncode != 0
    assert "ImportError: attempted relative import" in done.stderr


def heavy_after(statement: str) -> list[str]:
    heavy = ["torch", "numpy", "transformers", "diffusers", "mujoco", "gymnasium", "matplotlib"]
    done = python(f"import sys, json; {statement}; print(json.dumps([m for m in {heavy} if m in sys.modules]))")
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


def test_importing_the_package_and_the_command_line_imports_nothing_heavy() -> None:
    assert heavy_after("import autotelic, autotelic.cli, autotelic.doctor") == []


def test_importing_any_recipe_imports_no_torch() -> None:
    modules = ", ".join(recipe.module for recipe in all_recipes().values())
    if not modules:
        pytest.skip("there is no recipe yet")
    assert "torch" not in heavy_after(f"import {modules}")


WIDE = {"vla/openvla.py"}  # the arguments of a policy are its saved settings


def test_no_file_is_longer_than_600_lines() -> None:
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in FILES}
    assert {name: n for name, n in lengths.items() if n > 600} == {}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_functions_are_under_80_lines_and_12_arguments(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 80, node.name
            arguments = len(node.args.args) + len(node.args.kwonlyargs)
            assert arguments < 12 or path.relative_to(ROOT).as_posix() in WIDE, node.name


def imports_of(path: Path, within: bool = False) -> set[str]:
    """Modules of the package that a file imports when it is itself imported; ``within`` adds those of functions."""
    names = {module_name(p) for p in FILES}
    package = module_name(path).split(".") if path.name == "__init__.py" else module_name(path).split(".")[:-1]
    found: set[str] = set()

    def visit(nodes: Sequence[ast.AST]) -> None:
        for node in nodes:
            if isinstance(node, ast.ImportFrom):
                base = [*package[: len(package) - node.level + 1], *filter(None, [node.module])] if node.level else []
                inside = ".".join(base)
                members = {f"{inside}.{alias.name}" for alias in node.names} & names
                found.update(members or {inside} & names)
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                visit(node.orelse)
            elif within or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                visit(list(ast.iter_child_nodes(node)))

    visit(ast.parse(path.read_text()).body)
    return found - {module_name(path)}


def circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """The largest sets of modules each of which leads to every other."""
    beyond: dict[str, set[str]] = {}
    for start in graph:
        beyond[start], waiting = set(), [start]
        while waiting:
            new = graph[waiting.pop()] - beyond[start]
            beyond[start] |= new
            waiting += new
    around = {name: frozenset(other for other in reach if name in beyond[other]) for name, reach in beyond.items()}
    return {each for each in around.values() if len(each) > 1}


CIRCLES = {
    frozenset(f"autotelic.envs.{name}" for name in ("simulator", "gym_simulator", "gym_pictures", "rendering")): (
        "a spec without a maker of its own is run by Gymnasium's simulator, which is one of the simulators, and "
        "drawn by a GL library as MuJoCo's cameras are"
    ),
    frozenset({"autotelic.envs.metaworld", "autotelic.envs.metaworld_tasks"}): (
        "tasks are listed without physics, and physics knows the tasks' observation"
    ),
}
"""Circles that imports inside functions close, and why."""


def test_no_import_is_cyclic() -> None:
    graph = {module_name(path): imports_of(path) for path in FILES}
    assert "autotelic.types" in graph["autotelic.trainers.policy"], "the test sees no imports"
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the cycle


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == {frozenset("bc")}


def test_imports_inside_functions_close_few_circles_each_with_a_reason() -> None:
    graph = {module_name(path): imports_of(path, within=True) for path in FILES}
    assert circles(graph) == set(CIRCLES) and len(CIRCLES) <= 3


def test_no_import_runs_up_between_rooms() -> None:
    floor = dict.fromkeys(("rewards", "envs", "trainers"), 1) | dict.fromkeys(("vlm", "vla", "diffusion"), 2)
    strange = []
    for path in FILES:
        mine = module_name(path).split(".")[1:2] or [""]
        for name in imports_of(path, within=True):
            theirs = name.split(".")[1:2] or [""]
            if mine[0] in floor and theirs[0] in floor and mine != theirs and floor[theirs[0]] >= floor[mine[0]]:
                strange.append((module_name(path), name))
    assert strange == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_inside_the_package_are_relative(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
        assert not [name for name in names if name.split(".")[0] in ("autotelic", *ROOMS)], ast.unparse(node)


def test_the_built_wheel_holds_every_file_of_every_room(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    pytest.importorskip("build")
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("src", *ROOMS):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(tree)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    assert wheel.name.startswith(f"autotelic-{autotelic.__version__}-")
    wanted = {module_name(path).replace(".", "/") for path in FILES}
    assert {name for name in wanted if not {f"{name}.py", f"{name}/__init__.py"} & held} == set()
    templates = {path.relative_to(ROOT).as_posix() for room in ROOMS for path in (ROOT / room).rglob("*.html")}
    assert {f"autotelic/{name}" for name in templates} | {"autotelic/py.typed"} <= held
    assert any(name.endswith("licenses/LICENSE") for name in held)


def test_the_rewards_in_the_readme_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "def near" in block]
    names: dict[str, Any] = {}
    exec(code, names)
    at_rest = SimpleNamespace(observations=np.zeros((2, 21)), actions=np.zeros((1, 5, 4)))
    apart = SimpleNamespace(
        observations=np.eye(21)[[0, 0]], actions=np.ones((1, 5, 4))
    )  # hand one metre from the object
    # the second one's hand ends one metre from the object, and every action is as large as can be
    for name in ("near", "calm"):
        assert names[name](episodes=[at_rest, apart], tasks=[None, None]) == pytest.approx([0.0, -1.0])


@pytest.mark.parametrize(
    "path", sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]), ids=lambda path: path.name
)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), target
