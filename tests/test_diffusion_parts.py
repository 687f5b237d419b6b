"""The smaller parts of learning to draw: prompts, the watch over pictures, averaged weights, the learner of pairs."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from autotelic.diffusion.beta import PairwiseLearner, group_spread
from autotelic.diffusion.grids import SIDE, write_grid
from autotelic.diffusion.prompts import file_prompts, read_prompts, shapes_prompts, source_of
from autotelic.diffusion.watch import MovingAverage, Watch
from autotelic.errors import UsageError
from autotelic.trainers.learner import Optimisation
from autotelic.trainers.objectives import PairwiseRegression
from autotelic.trainers.pairing import all_pairs
from autotelic.trainers.runs import checkpoint
from autotelic.trainers.runs.records import rollouts_from_state, rollouts_state
from autotelic.types import Rollout, Task

from .small_drawing import TASKS, shapes_policy

# --- prompts -------------------------------------------------------------------------------------


def test_a_text_file_is_a_prompt_per_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("  a cat \n\na dog, ünlike a cat\na cat\n[not json]\n", encoding="utf-8")
    tasks = read_prompts(path)
    assert [(t.id, t.prompt) for t in tasks] == [
        ("prompt/1", "a cat"),
        ("prompt/2", "a dog, ünlike a cat"),
        ("prompt/4", "[not json]"),
    ]


def test_json_lines_bring_columns_for_rewards(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '\ufeff{"prompt": "a sign that says hi", "text": "hi", "weight": 2}\n{"prompt": " plain words"}\n',
        encoding="utf-8",
    )
    first, second = read_prompts(str(path))
    assert (first.prompt, dict(first.extra)) == ("a sign that says hi", {"text": "hi", "weight": 2})
    assert (second.prompt, dict(second.extra)) == ("plain words", {})


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"prompt": "a', "prompts.txt line 2 is no JSON object"),
        ('{"text": "a"}', 'prompts.txt line 2 wants a text in the column "prompt", and has text'),
        ('{"prompt": 3}', "prompts.txt line 2 wants a text in the column \"prompt\", not '3'"),
        ('{"prompt": " "}', "prompts.txt line 2 wants a text in the column \"prompt\", not ' '"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, told: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text(f"a cat\n{line}\n")
    with pytest.raises(UsageError) as error:
        read_prompts(path)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_files_that_cannot_be_split_or_read_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a\nb\nc\nc\n")
    with pytest.raises(UsageError, match="holds 3 prompts: 4 or more"):
        file_prompts(path)
    with pytest.raises(UsageError, match=r"there is no file .*missing"):
        file_prompts(tmp_path / "missing.txt")
    path.write_bytes(b"\xff\xfe\x00 a")
    with pytest.raises(UsageError, match="no text in UTF-8"):
        read_prompts(path)


@pytest.mark.parametrize(("count", "sizes"), [(4, (2, 1, 1)), (8, (6, 1, 1)), (120, (90, 20, 10))])
def test_a_share_of_a_file_is_held_out(tmp_path: Path, count: int, sizes: tuple[int, int, int]) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(f"thing {i}" for i in range(count)))
    prompts = file_prompts(path)
    sides = prompts.rewarded, prompts.unrewarded, prompts.probes
    assert tuple(map(len, sides)) == sizes
    assert len({t.prompt for side in sides for t in side}) == count, "the three sets share a prompt"
    assert [side[0].category for side in sides] == ["rewarded", "unrewarded", "probe"]
    path.write_text("\n".join(reversed(path.read_text().splitlines())))
    again, other = file_prompts(path), file_prompts(path, split=1)
    assert {t.prompt for t in again.rewarded} == {t.prompt for t in prompts.rewarded}
    assert count == 4 or {t.prompt for t in other.rewarded} != {t.prompt for t in prompts.rewarded}


def test_the_small_world_has_three_sets_of_captions() -> None:
    prompts = shapes_prompts(split=1, probes=24)
    sides = prompts.rewarded, prompts.unrewarded, prompts.probes
    assert tuple(map(len, sides)) == (192, 72, 24)
    assert len({t.prompt for side in sides for t in side}) == 288
    assert {t.prompt for t in prompts.unrewarded} != {t.prompt for t in shapes_prompts(split=0).unrewarded}


def test_a_source_gives_every_prompt_once_per_turn() -> None:
    tasks = [Task(f"t{i}", f"thing {i}") for i in range(7)]
    draw = source_of(tasks, seed=1)
    turns = [[draw(i) for i in range(7 * turn, 7 * turn + 7)] for turn in range(3)]
    for number, turn in enumerate(turns):
        assert Counter(t.prompt for t in turn) == Counter(t.prompt for t in tasks)
        assert {t.id for t in turn} == {f"t{i}/{number}" for i in range(7)}
    assert len({tuple(t.prompt for t in turn) for turn in turns}) > 1, "every turn has the same order"
    assert [draw(i).id for i in range(7)] == [source_of(tasks, seed=1)(i).id for i in range(7)]
    assert [draw(i).id for i in range(7)] != [source_of(tasks, seed=2)(i).id for i in range(7)]


# --- watch ---------------------------------------------------------------------------------------


def grey(task: str, *levels: float) -> list[Rollout]:
    """Plain pictures of one prompt."""
    nothing = torch.zeros(1, dtype=torch.bool)
    pictures = [torch.full((3, 4, 4), level) for level in levels]
    return [Rollout(Task(task, task), p, {}, None, nothing, nothing.long()) for p in pictures]


def test_a_watch_counts_queries_and_measures_diversity() -> None:
    watch = Watch()
    assert watch.update(grey("a", 0.5) + grey("b", 0.1)) == {"queries": 2.0}
    metrics = watch.update(grey("a", 0.0, 1.0) + grey("b", 0.5, 0.5, 0.5) + grey("c", 0.9))
    assert metrics == {"queries": 8.0, "pictures/diversity": pytest.approx(0.5**0.5 / 2)}


def test_a_watch_warns_once_when_pictures_become_alike(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    watch = Watch()
    with caplog.at_level(logging.WARNING):
        for far in (1.0, 0.51):
            watch.update(grey("a", 0.0, far))
        assert caplog.messages == []
        watch.update(grey("a", 0.0, 0.4))
        watch.update(grey("a", 0.0, 0.1))
        assert caplog.messages == ["the pictures of a prompt differ 40 % as much as at the start"]
        checkpoint.save(tmp_path / "watch", watch.state_dict())
        resumed = Watch()
        resumed.load_state_dict(checkpoint.load(tmp_path / "watch"))
        assert resumed.update(grey("a", 0.0, 0.1))["queries"] == 10.0
        assert len(caplog.messages) == 1 and resumed.first == watch.first
    fresh = Watch()
    checkpoint.save(tmp_path / "fresh", fresh.state_dict())
    fresh.load_state_dict(checkpoint.load(tmp_path / "fresh"))
    assert fresh.first is None and not fresh.warned


# --- sheets ----------------------------------------------------------------------------------------


def test_small_pictures_are_enlarged_without_smoothing(tmp_path: Path) -> None:
    """Two rows, three columns of 16 x 16 pixels: four times as large, with a white gap of four pixels between."""
    pictures = torch.rand(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    path = write_grid(pictures, tmp_path / "rewarded-before")
    assert path.name == "rewarded-before.png"
    sheet = torch.from_numpy(np.array(Image.open(path)))
    assert sheet.shape == (2 * 68 - 4, 3 * 68 - 4, 3)
    assert bool((sheet[64:68] == 255).all()) and bool((sheet[:, 64:68] == 255).all())
    wanted = (pictures[1, 2] * 255).round().byte().permute(1, 2, 0)
    assert torch.equal(sheet[68::4, 136::4], wanted) and torch.equal(sheet[71::4, 139::4], wanted)


def test_large_pictures_are_made_smaller_and_what_is_not_finite_is_grey(tmp_path: Path) -> None:
    pictures = torch.ones(2, 6, 3, 600, 400)
    pictures[1, 0] = torch.nan
    path = write_grid(pictures, tmp_path / "unrewarded-after")
    assert path.name == "unrewarded-after.webp"
    sheet = np.array(Image.open(path)).astype(int)
    height, width = sheet.shape[:2]
    assert 1500 <= width <= SIDE + 6 and height == pytest.approx(2 * width * 600 / (6 * 400), rel=0.02)
    assert abs(sheet[height * 3 // 4, 20] - 127).max() < 4 and sheet[height // 4, 20].min() > 250


def test_a_sheet_of_videos_moves(tmp_path: Path) -> None:
    video = torch.linspace(0, 1, 5).view(1, 1, 5, 1, 1, 1).expand(1, 2, 5, 3, 64, 64)
    with Image.open(write_grid(video, tmp_path / "rewarded-after")) as sheet:
        assert (sheet.n_frames, sheet.size) == (5, (129, 64))  # type: ignore[attr-defined]
        sheet.seek(4)
        assert np.array(sheet.convert("RGB"))[32, 32].min() > 245


# --- averaged weights ----------------------------------------------------------------------------


def set_to(policy: Any, value: float) -> None:
    policy.load_state_dict({k: torch.full_like(v, value) for k, v in policy.state_dict().items()})


def test_an_average_follows_the_weights(tmp_path: Path) -> None:
    """Decays 0.1 (of (1 + n) / (10 + n)) and 0.15 (the limit): 0 -> 0.9 -> 0.15 * 0.9 + 0.85 * 2."""
    policy = shapes_policy(rank=2)
    set_to(policy, 0.0)
    average = MovingAverage(policy, 0.15)
    for value, right in ((1.0, 0.9), (2.0, 1.835)):
        set_to(policy, value)
        assert average.update([]) == {}
        for mine in average.average.state_dict().values():
            torch.testing.assert_close(mine, torch.full_like(mine, right))
    checkpoint.save(tmp_path / "average", average.state_dict())
    other = MovingAverage(policy, 0.15)
    other.load_state_dict(checkpoint.load(tmp_path / "average"))
    assert other.updates == 2
    other.update([])
    for mine in other.average.state_dict().values():
        torch.testing.assert_close(mine, torch.full_like(mine, 0.15 * 1.835 + 0.85 * 2))
    for wrong in (0.0, 1.0):
        with pytest.raises(ValueError, match="decay between 0 and 1"):
            MovingAverage(policy, wrong)


# --- beta in units of reward ---------------------------------------------------------------------


def learner(kappa: float = 20.0) -> PairwiseLearner:
    policy = shapes_policy(rank=2)
    regression = PairwiseRegression(1.0, "start")
    references = {"start": policy.fork("start")}
    return PairwiseLearner(
        policy, regression, Optimisation(1e-3), kappa=kappa, prepare=[all_pairs], references=references
    )


def drawn(policy: Any, *scores: float | None, key: int = 0) -> list[Rollout]:
    """Two prompts with two pictures each."""
    rollouts = policy.act(TASKS, 2, key=(key,))
    for rollout, value in zip(rollouts, scores, strict=True):
        rollout.scores["total"] = value
    return list(rollouts)


def test_the_spread_of_rewards_is_that_within_groups() -> None:
    rollouts = drawn(shapes_policy(), 0.0, 1.0, 10.0, 13.0)
    assert group_spread(rollouts) == pytest.approx((0.5**0.5 + 4.5**0.5) / 2)
    assert group_spread(rollouts[1:]) == pytest.approx(4.5**0.5)
    assert group_spread(rollouts[1:3]) == 0.0
    rollouts[3].scores["total"] = None
    assert group_spread(rollouts) == pytest.approx(0.5**0.5)
    rollouts[1].group = rollouts[2].group = "own"
    assert group_spread(rollouts) == pytest.approx(40.5**0.5)


def test_beta_is_the_spread_over_kappa() -> None:
    """sigma_0 = sqrt 2, beta = sigma_0 / 20. On-policy every d is 0: loss = mean((1, 3)^2) / beta^2 / (2 * 20) = 25."""
    mine = learner()
    metrics = mine.update(drawn(mine.policy, 0.0, 1.0, 10.0, 13.0))
    assert metrics["objective/sigma_0"] == pytest.approx(2**0.5)
    ((weight, regression),) = mine.objective.parts  # type: ignore[attr-defined]
    assert weight == pytest.approx(1 / 40) and regression.beta == pytest.approx(2**0.5 / 20)
    assert metrics["objective/loss"] == pytest.approx(25.0, rel=1e-2)
    mine.update(drawn(mine.policy, 0.0, 100.0, 0.0, 100.0, key=1))
    assert mine.spread == pytest.approx(2**0.5), "it is that of the first update"


def test_rewards_of_any_scale_learn_alike() -> None:
    weights = []
    for scale in (1.0, 1000.0):
        mine = learner()
        mine.update(drawn(mine.policy, 0.0, 1.0 * scale, 10.0 * scale, 13.0 * scale))
        weights.append(torch.cat([p.detach().flatten() for p in mine.policy.parameters()]))
    start = torch.cat([p.detach().flatten() for p in learner().policy.parameters()])
    assert float((weights[0] - start).abs().max()) > 5e-4
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-4)


def test_beta_survives_a_checkpoint(tmp_path: Path) -> None:
    mine = learner()
    mine.update(drawn(mine.policy, 0.0, 1.0, 10.0, 13.0))
    checkpoint.save(tmp_path / "learner", mine.state_dict())
    other = learner()
    other.load_state_dict(checkpoint.load(tmp_path / "learner"))
    for it in (mine, other):
        metrics = it.update(drawn(it.policy, 0.0, 5.0, 0.0, 5.0, key=1))
        assert metrics["objective/sigma_0"] == pytest.approx(2**0.5)
    for one, two in zip(mine.policy.parameters(), other.policy.parameters(), strict=True):
        assert torch.equal(one, two)


def test_without_spread_nothing_is_learned_until_there_is_some() -> None:
    mine = learner()
    before = [p.detach().clone() for p in mine.policy.parameters()]
    assert mine.update(drawn(mine.policy, 2.0, 2.0, 5.0, 5.0)) == {"learned": 0.0, "objective/sigma_0": 0.0}
    assert all(torch.equal(p, b) for p, b in zip(mine.policy.parameters(), before, strict=True))
    assert mine.update(drawn(mine.policy, 2.0, 3.0, 5.0, 5.0))["objective/sigma_0"] == pytest.approx(0.5**0.5 / 2)
    assert not all(torch.equal(p, b) for p, b in zip(mine.policy.parameters(), before, strict=True))


# --- what a run writes down ----------------------------------------------------------------------


def test_rollouts_come_back_from_a_file_as_they_were(tmp_path: Path) -> None:
    """Paths, seeds of 63 bits and log-probabilities; all that an update needs."""
    policy = shapes_policy()
    rollouts = drawn(policy, 0.0, 1.0, 10.0, 13.0)
    checkpoint.save(tmp_path / "rollouts", rollouts_state(rollouts))
    again = rollouts_from_state(checkpoint.load(tmp_path / "rollouts"))
    for one, two in zip(rollouts, again, strict=True):
        assert torch.equal(one.payload["path"], two.payload["path"])
        assert int(one.payload["seed"]) == int(two.payload["seed"])
        assert torch.equal(one.output, two.output)
    now, then = (policy.collate(part, "forward").payload["noise"] for part in (rollouts, again))
    assert torch.equal(now, then)
    assert [r.task.id for r in again] == [r.task.id for r in rollouts]
