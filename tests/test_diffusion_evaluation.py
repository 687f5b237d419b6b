"""What is told of a policy that draws: some prompts, always the same, a few at a time, and nothing kept but figures."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autotelic.diffusion.evaluation import evaluate, some
from autotelic.diffusion.prompts import Prompts
from autotelic.trainers.randomness import generator
from autotelic.types import Rollout, Task

from .strangers.data_graded import Blank


class Painter(Blank):
    """Draws pictures of noise by key and prompt, and remembers which of its rollouts are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: weakref.WeakSet[Rollout] = weakref.WeakSet()
        self.held = 0

    def act(self, tasks: Sequence[Task], n: int, *, key: Any = (0,), greedy: bool = False, **how: Any) -> list[Rollout]:
        drawn = super().act(tasks, n, **how)
        for rollout in drawn:
            rollout.output = torch.rand(3, 4, 4, generator=generator(*key, rollout.task.id, greedy))
            self.alive.add(rollout)
        gc.collect()
        self.held = max(self.held, len(self.alive))
        return drawn


def brightness(images: Sequence[Any], **columns: Any) -> list[float]:
    return [float(image.mean()) for image in images]


def made(count: int, at_once: int, most: int = 1000) -> tuple[dict[str, Any], Painter]:
    tasks = [Task(f"p{i}", f"thing {i}") for i in range(count)]
    config = SimpleNamespace(eval_offset=1, eval_episodes=3, eval_prompts=most, sample_rows=at_once)
    painter = Painter()
    prompts = Prompts(tuple(tasks), tuple(tasks[:5]), ())
    nouns = {"reward": brightness, "judge": None, "world": None, "start": painter}
    setting: Any = SimpleNamespace(config=config, prompts=prompts, **nouns)
    return evaluate(setting, painter), painter  # type: ignore[arg-type]


def test_figures_are_those_of_all_pictures_at_once() -> None:
    whole, first = made(20, 1000)
    parts, second = made(20, 6)
    assert parts["outcomes"] == whole["outcomes"] and parts["notes"] == whole["notes"]
    for kind, figures in whole["figures"].items():
        assert parts["figures"][kind] == pytest.approx(figures, rel=1e-6)
    assert set(whole["figures"]["rewarded"]) == {"reward", "diversity", "kl", "reward_ode"}
    assert (first.most, second.most) == (20, 2) and first.drawn == second.drawn
    assert second.held <= 4 * 6 < first.held, "pictures and paths are let go of"


def test_a_long_file_is_drawn_in_part_and_that_is_said() -> None:
    result, painter = made(50, 100, most=8)
    assert {kind: len(row["success"]) for kind, row in result["outcomes"].items()} == {"rewarded": 24, "unrewarded": 15}
    assert "Of 50 rewarded prompts 8 are drawn." in result["notes"] and len(painter.drawn) <= 13
    assert made(50, 100, most=8)[0]["outcomes"] == result["outcomes"], "the same ones again"


def test_some_prompts_are_of_every_category() -> None:
    tasks = [Task(f"p{i}", f"thing {i}", extra={"category": "rare" if i % 10 == 0 else "common"}) for i in range(100)]
    chosen = some(tasks, 20)
    assert [task.extra["category"] for task in chosen].count("rare") == 2 and len(chosen) == 20
    assert list(some(tasks[::-1], 20))[::-1] == list(chosen) and some(tasks, 100) is tasks


def test_prompts_twice_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from autotelic.diffusion.prompts import read_prompts

    (tmp_path / "p.txt").write_text("a\nb\na\n a \n")
    assert [task.prompt for task in read_prompts(tmp_path / "p.txt")] == ["a", "b"]
    assert "p.txt: 2 of 4 rows repeat others and count once" in caplog.text
