"""What a run of a model that speaks is trained on, shown, gated and judged by shares no content, or it is not built."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotelic.cli import main
from autotelic.envs.toys import scenes
from autotelic.envs.toys.scenes import Question, View
from autotelic.errors import UsageError
from autotelic.vlm import questions
from autotelic.vlm.recipes import grpo
from autotelic.vlm.setting import start

from .small_speaking import teach_quickly


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        teach_quickly(patch, tmp_path_factory.mktemp("cache"), seeing=3, answering=3)
        yield


def any_view(question: Question, scene: Any, split: int, random: Any) -> View:
    """A view as it comes, not drawn again."""
    return View.draw(question, random)


@pytest.mark.parametrize("gate_labels", [0, 14])
def test_a_run_in_the_small_world_is_built_on_sides_without_common_content(gate_labels: int) -> None:
    config = grpo.Config.tiny(gate_labels=gate_labels, demonstrations=21)
    setting = start(config)
    pairs = [tuple(sides) for sides in setting.splits()]
    held, probed = "evaluation", "the gate's probes"
    assert pairs == [
        *((held, "training"), (probed, "training")),
        *((held, "demonstrations"), (probed, "demonstrations")),
        (held, probed),
    ]
    assert grpo.build(config, None).stages  # type: ignore[arg-type]  # no folder: nothing is written
    shown = setting.splits()[2]["demonstrations"]
    assert len(shown) == len(setting.encoded) > 0.9 * 21 * 48, "every view of every demonstration is compared"


@pytest.mark.parametrize(("gate_labels", "other"), [(0, "demonstrations"), (14, "demonstrations")])
def test_views_as_they_come_are_refused_when_a_run_is_built(
    gate_labels: int, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenes, "seen_view", any_view)
    config = grpo.Config.tiny(gate_labels=gate_labels, demonstrations=21, eval_episodes=20)
    with pytest.raises(UsageError, match=f"^evaluation and {other} share content, [0-9]+ times: "):
        grpo.build(config, None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"^evaluation and the gate's probes share content"):
        grpo.build(replace(config, gate_labels=0, demonstrations=0), None)  # type: ignore[arg-type]


def test_views_of_probes_ask_nothing_held_out() -> None:
    made = questions.small_world(0, 1, labels=False, gate_labels=0, held_out=2, probes=20)
    views = [task for task in made.probes if task.parent]
    assert len(made.probes) == 2 * len(views) and len(views) > 0.95 * 20 * len(scenes.TYPES)
    for task in views:
        question, scene = made.drawn[questions.PROBES][task.id]
        assert str(question) == task.prompt and not scenes.held_out(question, scene, 1)


def rows_with(path: Path, rows: list[Any]) -> str:
    file = path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_the_sides_of_a_file_and_of_sums_are_told_by_content(tmp_path: Path) -> None:
    rows = [{"prompt": f"how many {i // 2}", "answer": str(i % 2)} for i in range(40)]
    path = rows_with(tmp_path, [*rows, rows[3], rows[5]])
    made = questions.from_file(path, gate_labels=4)
    (sides,) = made.splits
    assert {name: len(things) for name, things in sides.items()} == {
        "training": sum(map(len, made.train.values())),  # type: ignore[arg-type]
        "evaluation": len(made.held_out),
        "the gate's probes": len(made.probes),
    }
    assert "; 2 rows repeat others: line 41 as line 4, line 42 as line 6" in made.note
    (sides,) = questions.sums(0, 0, labels=True, gate_labels=4, held_out=5).splits
    numbers = {name: set().union(*things.values()) for name, things in sides.items()}
    assert len(numbers["evaluation"]) == 10 and len(numbers["training"]) > 500 and "25 47" not in sides


def test_rows_about_one_picture_are_told_and_stay_on_one_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    rows = []
    for i in range(12):
        Image.new("RGB", (32, 32), (20 * i, 9, 9)).save(tmp_path / f"{i}.png")
        rows += [{"prompt": f"how many {word}", "answer": "1", "image": f"{i}.png"} for word in ("red", "disc")]
    path = rows_with(tmp_path, rows)
    made = questions.from_file(path, gate_labels=2)
    assert "; 12 pictures are shown by 24 rows, each picture on one side" in made.note
    (sides,) = made.splits
    assert all(key.startswith("picture ") for things in sides.values() for keys in things.values() for key in keys)
    dealt = questions._Own.dealt
    monkeypatch.setattr(questions._Own, "dealt", lambda *given: [[*side, 0] for side in dealt(*given)])
    options = ("--data", path, "--gate-labels", "4", "--output-dir", str(tmp_path / "run"))
    assert main(["run", "vlm/grpo", "--debug", *options]) == 2
    said = capsys.readouterr().err
    assert " share content, 1 times: data/" in said and "(picture " in said and said.count("\n") == 1
