"""``Trainer``: rows and objects in place of files and names, and a run folder like any other."""

from __future__ import annotations

import ast
import json
import os
import runpy
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from autotelic import Callback, RunFolder, Trainer, UsageError
from autotelic.cli import main
from autotelic.testing import vlms as tiny
from autotelic.trainer import write_rows

ROOT = Path(__file__).parents[1]
ROWS = [{"prompt": f"how many {what} ?", "answer": what} for what in ("dog", "cat", "circle", "square") * 5]
SMALL = {"debug": True, "lora_rank": 0, "gate": "none", "max_new_tokens": 3}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "llama"
    for part in tiny.text("llama"):
        part.save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: Callable[[], None]) -> None:
    monkeypatch.chdir(tmp_path)


def wordy(completions: list[str], answer: list[str], **columns: Any) -> list[float]:
    """More different letters, and a column of the rows as TRL's rewards ask for it."""
    assert set(answer) <= {"dog", "cat", "circle", "square"}
    return [len(set(said)) / 26 for said in completions]


class Dataset:
    """Rows as a ``datasets.Dataset`` gives them: an iterable of dictionaries that is no list."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.rows[index]


class Diary(Callback):
    """Writes down what it is told, and may press Ctrl-C after an iteration."""

    def __init__(self, stop: int = 0) -> None:
        self.lines: list[str] = []
        self.stop = stop

    def on_start(self, run: Any) -> None:
        self.lines.append(f"start {run.iteration}/{run.max_steps}")

    def on_iteration(self, iteration: int, metrics: Mapping[str, float]) -> None:
        self.lines.append(f"iteration {iteration}")
        if iteration == self.stop:
            os.kill(os.getpid(), signal.SIGINT)

    def on_evaluation(self, iteration: int, name: str, evaluation: Mapping[str, Any]) -> None:
        self.lines.append(f"evaluation {name}")

    def on_end(self, error: BaseException | None = None) -> None:
        self.lines.append(f"end {type(error).__name__}")


# rows and objects


@pytest.mark.parametrize("kind", [list, Dataset])
def test_rows_and_a_reward_function_are_taken_as_they_are(kind: Any, model: str) -> None:
    diary = Diary()
    trainer = Trainer(model=model, data=kind(ROWS), rewards=wordy, callbacks=[diary], **SMALL)
    assert trainer.train() is trainer
    assert trainer.folder.path == Path("runs/grpo-1") and trainer.folder.config["rewards"] == ["wordy"]
    lines = (trainer.folder.path / "data" / "data.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == ROWS
    assert [row["reward"] > 0 for row in trainer.metrics] == [True, True]
    asked = ["start 0/2", "evaluation before", "iteration 1", "iteration 2", "evaluation after", "end NoneType"]
    assert diary.lines == asked and list(trainer.evaluations) == ["before", "after"]
    assert trainer.evaluate()["outcomes"].keys() == trainer.evaluations["after"]["outcomes"].keys()
    assert trainer.report.is_file()


def test_pictures_and_arrays_in_rows_are_written_beside_them(tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    rows = [
        {"prompt": "?", "image": red, "images": [red, blue], "n": np.int64(3), "box": np.ones(2), "of": {"a": (1,)}}
    ]
    written = json.loads(write_rows(rows, tmp_path / "data" / "own.jsonl").read_text())
    assert {key: written[key] for key in ("n", "box", "of")} == {"n": 3, "box": [1.0, 1.0], "of": {"a": [1]}}
    names = [written["image"], *written["images"]]
    pixels = [Image.open(tmp_path / "data" / name).getpixel((0, 0)) for name in names]
    assert pixels == [(255, 0, 0), (255, 0, 0), (0, 0, 255)] and len(set(names)) == 3


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        (["how many ?"], "row 1 of the data is a str: rows are dictionaries"),
        ([{"prompt": "a"}, {"prompt": {1}}], "row 2 of the data: Object of type set is not JSON serializable"),
    ],
)
def test_a_row_that_is_none_is_told(rows: Any, line: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=line):
        write_rows(rows, tmp_path / "data.jsonl")


def test_a_model_sees_pictures_of_rows() -> None:
    for part in tiny.vlm("qwen2_vl"):
        part.save_pretrained("qwen")
    rows = [{**row, "image": Image.new("RGB", (32, 32), (n, 0, 0))} for n, row in enumerate(ROWS)]
    trainer = Trainer(model="qwen", data=rows, rewards=wordy, max_steps=1, **SMALL)
    assert len(trainer.experiment.stages[0].curriculum.sample(1)[0].images) == 1
    assert len(list((trainer.folder.path / "data").glob("*.png"))) == len(rows)


def test_an_unknown_field_is_told_the_nearest_and_leaves_no_folder(model: str) -> None:
    with pytest.raises(UsageError, match=r'unknown field of vlm/grpo "max_step": did you mean .*max_steps'):
        Trainer(model=model, data=ROWS, rewards=wordy, max_step=3)
    with pytest.raises(UsageError, match="hang together by one text, and none can be held out"):
        Trainer(model=model, data=[{"prompt": "how many ?", "answer": "1"}] * 20, rewards=wordy, **SMALL)
    assert not Path("runs").exists() or not list(Path("runs").iterdir())


# a run folder like any other


def test_a_run_that_was_stopped_is_opened_and_continued(model: str) -> None:
    first = Diary(stop=1)
    given: dict[str, Any] = {"model": model, "data": ROWS, "rewards": wordy} | SMALL
    with pytest.raises(KeyboardInterrupt):
        Trainer(**given, output_dir="stopped", callbacks=[first]).train()
    assert first.lines[-1] == "end KeyboardInterrupt"
    second = Diary()
    opened = Trainer.open("stopped", callbacks=[second]).train()
    assert second.lines == ["start 1/2", "iteration 2", "evaluation after", "end NoneType"]
    whole = Trainer(**given, output_dir="whole").train()
    assert [row["reward"] for row in opened.metrics] == [row["reward"] for row in whole.metrics]
    assert opened.train().metrics == opened.metrics, "who is at the end goes on from there"


def test_the_command_line_goes_on_with_a_run_and_asks_for_a_file_of_its_objects(
    model: str, forget: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    Trainer(model=model, data=ROWS, rewards=wordy, output_dir="run", **SMALL).train()
    assert main(["report", "run"]) == 0
    assert main(["eval", "run", "--episodes", "1"]) == 0, "the object is known in this process"
    forget()
    capsys.readouterr()
    Path("run/evaluations/after.json").unlink()  # or resume would have nothing left to do
    for command in ("resume", "eval"):
        assert main([command, "run"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert 'the reward "wordy" of run was given to a Trainer as an object' in line and "--use" in line
    with pytest.raises(UsageError, match="--use"):
        Trainer.open("run")
    text = "from autotelic import register as r\nr('reward', 'wordy', lambda completions, **_: [1] * len(completions))"
    Path("mine.py").write_text(text)
    assert main(["eval", "run", "--episodes", "1", "--use", "mine.py"]) == 0
    Path("run").rename("moved")
    assert main(["resume", "moved", "--use", "mine.py"]) == 0
    assert {"before", "after", "best-0-1"} == RunFolder.open("moved").evaluations().keys()


# GRPO in ten lines


def test_grpo_with_an_own_reward_takes_at_most_ten_lines(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ROOT / "examples" / "grpo.py"
    tree = ast.parse(path.read_text())
    docstring = tree.body[0].end_lineno or 0
    assert len([line for line in path.read_text().splitlines()[docstring:] if line.strip()]) <= 10
    text = path.read_text().replace("max_steps=20", "max_steps=2, tasks_per_step=2, max_new_tokens=4, eval_episodes=2")
    Path("short.py").write_text(text)
    monkeypatch.setattr(sys, "argv", ["grpo.py", model])
    runpy.run_path("short.py")
    assert len(RunFolder.open("runs/grpo-1").metrics()) == 2
