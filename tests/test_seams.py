"""Seams: where code feels an object for what it is, and lines of code, both as benchmarks/code_lines.py counts them."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
REASONS: dict[str, tuple[str, ...]] = {
    "models, processors and configs of libraries, whose families differ in what they have": (
        *(
            "diffusion/lora.py",
            "diffusion/economy.py",
            "diffusion/pipelines/base.py",
            "diffusion/pipelines/loading.py",
            "diffusion/schedulers.py",
            "diffusion/sampler.py",
        ),
        *(
            "rewards/image/hub.py",
            "rewards/models/vlm.py",
            "trainers/lora.py",
            "vla/lerobot_policy.py",
            "vlm/renderer.py",
        ),
        *("vla/openvla.py", "vlm/loading.py", "vlm/processing.py", "vlm/transformers_backbone.py"),
        *("vlm/lean.py", "vlm/static_decoding.py"),
        *("vlm/checks.py", "vlm/keeping.py", "vlm/reach.py", "src/autotelic/untrusted.py"),
        *("vlm/checkpointing.py", "vlm/plan.py"),
    ),
    "simulators of others, whose attributes are their state": (
        *("envs/gym_simulator.py", "envs/metaworld.py", "envs/mujoco_content.py"),
        *("envs/gym_pictures.py", "envs/rendering.py", "envs/simulator.py", "envs/snapshots.py"),
    ),
    "a person's function, class, array or module, which promises nothing": (
        *("diffusion/gradients.py", "diffusion/videos.py", "envs/worker.py", "rewards/audit.py"),
        *(
            "rewards/progress/clip_progress.py",
            "rewards/models/exhibits.py",
            "rewards/isolated.py",
            "rewards/isolated_worker.py",
        ),
        *("rewards/names.py", "rewards/progress/estimates.py", "rewards/reward.py", "rewards/text/verifiers.py"),
        *(
            "rewards/progress/vlm_progress.py",
            "src/autotelic/auditing.py",
            "src/autotelic/check.py",
            "src/autotelic/json_files.py",
        ),
        *("src/autotelic/calling.py", "src/autotelic/families.py", "src/autotelic/listing.py"),
        *("src/autotelic/images.py", "src/autotelic/numbers.py"),
        *("src/autotelic/tables.py",),
        *("src/autotelic/plugins.py", "src/autotelic/sandbox_peer.py", "src/autotelic/sweep.py"),
        *("src/autotelic/trainer.py", "trainers/contracts.py", "trainers/metrics.py", "trainers/scoring.py"),
        *("trainers/drift.py", "trainers/setting.py"),
        *("vla/actor.py", "vla/environments.py", "vla/progress.py", "vlm/credit.py"),
    ),
    "a command, a part or an export by its name": (
        *("envs/process.py", "src/autotelic/__init__.py", "src/autotelic/sandbox_child.py", "trainers/actors.py"),
    ),
    "a dataclass or a module as a record: its fields are written, read or copied": (
        *("diffusion/policy.py", "envs/toys/shapes.py", "src/autotelic/config_files.py"),
        *(
            "src/autotelic/options.py",
            "src/autotelic/preflight.py",
            "src/autotelic/sandbox.py",
            "src/autotelic/types.py",
            "trainers/config.py",
            "trainers/ranges.py",
        ),
        *("trainers/runs/records.py", "trainers/summaries.py", "vla/network.py"),
    ),
    "episodes and demonstrations, with pictures or without": (
        *("envs/lerobot_dataset.py", "envs/lerobot_writing.py", "rewards/progress/frame_critics.py"),
    ),
    "one of two kinds of a thing, which do different work": (
        *("vlm/asking.py", "vlm/small/critique.py", "vlm/memory.py", "vlm/policy.py", "vlm/tools.py", "vlm/watch.py"),
    ),
    "errors and what the operating system has": (
        *("envs/board.py", "src/autotelic/cli.py", "src/autotelic/errors.py", "src/autotelic/machine.py"),
        *("trainers/faults.py",),
        *("vlm/server.py",),
    ),
}
"""Why a file outside ``NO_SEAMS`` has seams."""


@pytest.fixture(scope="module")
def counter() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        return runpy.run_path(str(ROOT / "benchmarks" / "code_lines.py"))


@pytest.fixture(scope="module")
def found(counter: Any) -> dict[str, list[str]]:
    places = [
        *(ROOT / "src" / "autotelic").glob("*.py"),
        *(p for r in counter["ROOMS"] for p in (ROOT / r).rglob("*.py")),
    ]
    texts = {path.relative_to(ROOT).as_posix(): path.read_text() for path in places}
    own = counter["classes_in"](texts.values())
    return {path: counter["seams"](text, own) for path, text in texts.items()}


def test_the_loop_and_what_evaluates_rely_on_what_objects_promise(counter: Any, found: dict[str, list[str]]) -> None:
    assert {path: found[path] for path in counter["NO_SEAMS"] if found.get(path)} == {}


def test_seams_elsewhere_have_a_reason_and_no_reason_is_out_of_date(found: dict[str, list[str]], counter: Any) -> None:
    reasoned = [path for paths in REASONS.values() for path in paths]
    have = {path: lines for path, lines in found.items() if lines and path not in counter["NO_SEAMS"]}
    assert {path: lines for path, lines in have.items() if path not in reasoned} == {}
    assert [path for path in reasoned if path not in have] == [], "reasons for files without seams"
    assert len(reasoned) == len(set(reasoned))


def test_every_seam_is_counted_and_nothing_else(counter: Any) -> None:
    code = """
class Own: ...
def ask(x, kind):
    try:
        getattr(x, "name"), hasattr(x, "name"), vars(x), x.__dict__
    except (KeyError, AttributeError):
        return isinstance(x, (str, Own)), isinstance(x, str), isinstance(x, kind)
"""
    own = counter["classes_in"]([code])
    assert own == {"Own"} and sorted(line.partition(":")[0] for line in counter["seams"](code, own)) == list("555567")


def test_lines_of_code_are_counted_by_hand(counter: Any) -> None:
    code = '''"""A docstring
of two lines."""

import os  # a comment behind code

# a comment alone
NAME = """a string
that is code"""
"""And its docstring."""

def work(a,
         b):
    """One line."""

    return (
        a + b
    )
'''
    assert counter["code_lines"](code) == 1 + 2 + 2 + 3


def test_rooms_are_told_wherever_they_lie(counter: Any) -> None:
    rooms = {
        path: counter["room_of"](path) for path in ("vlm/a/b.py", "src/autotelic/vlm/a.py", "src/autotelic/cli.py")
    }
    assert list(rooms.values()) == ["vlm", "vlm", "core"]
    further = (
        "src/autotelic/testing/fakes.py",
        "src/autotelic/testing.py",
        "benchmarks/peers/a.py",
        "tests/a.py",
        "a.md",
    )
    assert [counter["room_of"](path) for path in further] == ["testing", "testing", "benchmarks", None, None]
