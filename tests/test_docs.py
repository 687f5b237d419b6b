"""What the documents show exists: commands, flags, kinds, links, and the code of docs/python.md runs."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from autotelic import plugins
from autotelic.cli import COMMANDS, main
from autotelic.comparing.arms import read_arms
from autotelic.comparing.command import parser as compare_options
from autotelic.options import (
    AuditOptions,
    CheckOptions,
    DoctorOptions,
    EvalOptions,
    ExportOptions,
    RecordOptions,
    ResumeOptions,
    run_options,
)
from autotelic.recipes import all_recipes, find_recipe
from autotelic.trainers.runs.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OPTIONS = {
    "resume": ResumeOptions,
    "eval": EvalOptions,
    "export": ExportOptions,
    "audit": AuditOptions,
    "record": RecordOptions,
    "check": CheckOptions,
    "doctor": DoctorOptions,
}
RUN = re.compile(r"autotelic ((?:run|eval|audit|record|check|compare|resume|report|list|doctor)\b[^`\n|…]*)")


def commands() -> Iterator[tuple[str, list[str]]]:
    """(page, words after "autotelic") of every command that a page shows."""
    for page in PAGES:
        text = re.sub(r"\\\n\s*", "", page.read_text())
        for match in RUN.finditer(text):
            line = match[1].partition("  #")[0].partition("# ")[0]
            if "..." not in line and "X" not in line.split():
                yield page.name, shlex.split(line, posix=False)


SHOWN = list(commands())


def flags_of(recipe: str) -> set[str]:
    """The flags of ``autotelic run RECIPE``; of a recipe that is not there, those that every run has."""
    module = find_recipe(recipe if recipe in all_recipes() else "vlm/grpo").load()
    names = [field.name for field in fields(run_options(module.Config())) if field.name != "config"]
    names += [each.name for each in fields(module.Config)]
    return {f"--{name.replace('_', '-')}" for name in names} | {"--use", "--config", "--help", "--no-freeze-vision"}


def test_commands_are_found_in_every_guide() -> None:
    assert len(SHOWN) > 40
    assert {"README.md", "vlm.md", "vla.md", "diffusion.md", "environments.md", "python.md"} <= {
        page for page, _ in SHOWN
    }


@pytest.mark.parametrize(("page", "words"), SHOWN, ids=[f"{page}: {' '.join(words)[:60]}" for page, words in SHOWN])
def test_a_shown_command_has_the_recipe_and_the_flags_that_it_names(page: str, words: list[str]) -> None:
    command, rest = words[0], words[1:]
    assert command in COMMANDS
    used = [word.partition("=")[0] for word in rest if word.startswith("--")]
    if command == "compare":
        plain = shlex.split(" ".join(rest))
        arms = read_arms(list(itertools.takewhile(lambda word: not word.startswith("-"), plain)))
        assert all(
            {f"--{name.replace('_', '-')}" for name in each} <= flags_of(each["recipe"]) | {"--recipe"}
            for each in arms.values()
        )
        assert {*used} <= {option for action in compare_options()._actions for option in action.option_strings}, page
    elif command == "run" and rest and not rest[0].startswith("-"):
        recipe = rest[0].strip("`.,;)")
        assert recipe in all_recipes() or recipe.endswith(".py") or recipe.isupper() or recipe == "FILE.py", recipe
        assert {*used} <= flags_of(recipe), page
    elif command == "list" and rest:
        kind = rest[0].strip("`.,;)")
        assert kind == "KIND" or kind in {each.plural for each in plugins.KINDS.values()}
    elif command in OPTIONS:
        known = {f"--{field.name.replace('_', '-')}" for field in fields(OPTIONS[command])} | {"--use"}
        assert {*used} <= known, page


def test_flags_in_text_are_somebodys() -> None:
    known = {flag for recipe in all_recipes() for flag in flags_of(recipe)} | {
        "--no-novelty",
        *(option for action in compare_options()._actions for option in action.option_strings),
    }
    known |= {f"--{field.name.replace('_', '-')}" for kind in OPTIONS.values() for field in fields(kind)}
    foreign = {
        "--json",
        "--quick",
        "--arms",
        "--final",
        "--rounds",
        "--runs",
        "--jobs",
        "--no-gate",
        "--extra-index-url",
    }
    for page in PAGES:
        for quoted in re.findall(r"`(--[a-z][^`]*)`", page.read_text()):
            flag = quoted.split()[0]
            positive = flag.replace("--no-", "--", 1)
            assert {flag, positive} & known or flag in foreign or page.name == "results.md", (page.name, flag)


def test_the_readme_begins_with_demo_and_test_and_shows_an_own_reward_early() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert any(line.startswith("make demo") for line in lines[:20])
    assert any(line.startswith("make test") for line in lines[:20])
    first = lines.index("```python")
    length = [line for line in lines[first + 1 : lines.index("```", first + 1)] if line.strip()]
    assert first < 80 and len(length) <= 10 and any("Trainer(" in line for line in length)


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)


def test_every_block_of_python_is_python() -> None:
    for block in blocks():
        compile(block, "docs/python.md", "exec")


def test_objective_curriculum_tracker_and_recipe_of_the_guide_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autotelic.testing.vlms import text

    monkeypatch.chdir(tmp_path)
    for part in text():
        part.save_pretrained("tiny")
    files = {"my_objective": "class Surrogate", "my_curriculum": "class WeakestFirst", "my_tracker": "class Lines"}
    for name, word in (files | {"my_recipe": "own majority", "my_reward": "of_family"}).items():
        (block,) = [each for each in blocks() if word in each]
        Path(f"{name}.py").write_text(block)
    rows = [{"prompt": f"how many is {n}", "answer": "one", "category": "ab"[n % 2]} for n in range(24)]
    Path("q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    size = ["--max-steps", "2", "--max-new-tokens", "3", "--tasks-per-step", "2", "--group-size", "2"]
    size += ["--eval-episodes", "1", "--model", "tiny", "--data", "q.jsonl"]
    parts = ["--objective", "my_objective.py:surrogate", "--curriculum", "my_curriculum.py:WeakestFirst"]
    parts += ["--trackers", "my_tracker.py:Lines", "--rewards", "exact", "my_reward.py:brief:0.1"]
    assert main(["run", "vlm/grpo", *size, *parts, "--gate", "none", "--output-dir", "parts"]) == 0
    assert len(Path("parts/lines.txt").read_text().splitlines()) == 2
    rows_of_metrics = RunFolder.open("parts").metrics()
    assert "curriculum/b" in rows_of_metrics[-1] and "objective/clip_fraction" not in rows_of_metrics[-1]
    assert main(["run", "my_recipe.py", *size, "--output-dir", "mine"]) == 0
    assert Path("mine/plugins").is_dir()
