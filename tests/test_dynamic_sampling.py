"""Dynamic sampling: which groups are kept, how a round is filled, and what a run with it learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from autotelic.errors import UsageError
from autotelic.trainers.config import RunConfig
from autotelic.trainers.dynamic_sampling import DynamicSampling
from autotelic.trainers.loop import train
from autotelic.trainers.runs.run_folder import RunFolder
from autotelic.types import Rollout, Score, Task

from .test_loop import assert_same_run, same
from .toy_run import PICKY, build, folder_at, honest, lying


def attempts(name: str, *scores: Score) -> list[Rollout]:
    made = [Rollout.plain(Task(name, name), "") for _ in scores]
    for rollout, score in zip(made, scores, strict=True):
        rollout.scores["total"] = score
    return made


def test_which_groups_teach_by_hand() -> None:
    """DAPO's rule: some right and some not; SimpleVLA-RL's: between a tenth and nine tenths."""
    every, some = DynamicSampling(), DynamicSampling(0.1, 0.9)
    groups: list[tuple[list[Score], bool, bool]] = [
        ([1.0, 1.0, 1.0], False, False),
        ([0.1 + 0.2, 0.3, 0.3], True, True),  # another number, be it in the last bit
        ([None, 1.0, 0.0], True, True),
        ([None, None, 1.0], False, False),
        ([0.0] * 9 + [0.9], True, False),
        ([0.0] * 9 + [1.0], True, False),  # a tenth is not above a tenth
        ([0.0] * 8 + [1.0], True, True),
        ([1.0] * 19 + [0.0], True, False),
        ([torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])], True, False),  # one sum, other turns
    ]
    for number, (scores, dapo, simple) in enumerate(groups):
        group = attempts("q", *scores)
        assert (every.teaches(group), some.teaches(group)) == (dapo, simple), number
    both = [*attempts("a", 1.0, 1.0), *attempts("b", 0.0, 1.0)]
    both = [both[0], both[2], both[1], both[3]]
    assert every.kept(both) == [both[1], both[3]], "in their order"


def mostly(**columns: Any) -> list[float]:
    """1 where most tokens are right."""
    return [float(score > 0.6) for score in honest(**columns)]


def scripted(*draws: Sequence[int]) -> Any:
    """Attempts at tasks of which a draw tells, by ones, which have spread."""
    left, asked = [list(draw) for draw in draws], []

    def attempt(count: int, before: Sequence[Task]) -> Any:
        asked.append((count, len(before)))
        found = [attempts(f"{len(asked)}/{i}", 0.0, float(has)) for i, has in enumerate(left.pop(0))]
        assert len(found) == count
        rollouts = [rollout for group in found for rollout in group]
        return [group[0].task for group in found], rollouts, {"reward": float(len(asked))}

    return attempt, asked


def test_a_round_is_filled_by_as_many_tasks_as_are_missing() -> None:
    attempt, asked = scripted([1, 0, 0, 1], [0, 1], [1])
    tasks, kept, drawn, told = DynamicSampling().fill(attempt, 4)
    assert asked == [(4, 0), (2, 4), (1, 6)]
    assert [t.id for t in tasks] == ["1/0", "1/1", "1/2", "1/3", "2/0", "2/1", "3/0"] and len(drawn) == 14
    assert [r.task.id for r in kept] == [name for name in ("1/0", "1/3", "2/1", "3/0") for _ in range(2)]
    assert told == {
        "reward": 1.0,
        "dynamic/kept": 4 / 7,
        "dynamic/drawn": 7.0,
        "dynamic/batches": 3.0,
        "dynamic/missing": 0.0,
    }
    assert all((r.info.get("abs_advantage") == 0.0) == (r not in kept) for r in drawn)


def test_a_round_ends_after_so_many_draws_with_what_it_has() -> None:
    attempt, asked = scripted([0, 0, 1], [0, 0], [0, 0])
    _, kept, _, told = DynamicSampling(batches=2).fill(attempt, 3)
    assert asked == [(3, 0), (2, 3)] and len(kept) == 2
    assert told["dynamic/missing"] == 2.0 and told["dynamic/kept"] == 1 / 5 and told["dynamic/batches"] == 2.0
    attempt, asked = scripted([1, 1])
    assert DynamicSampling().fill(attempt, 2)[3]["dynamic/batches"] == 1.0, "nothing is missing"


def test_a_run_learns_from_what_was_kept_alone_and_other_weights_come_of_it(tmp_path: Path) -> None:
    weights = {}
    for name, dynamic in (("plain", None), ("dapo", DynamicSampling()), ("picky", PICKY)):
        folder = folder_at(tmp_path / name)
        train(build(mostly, 4, None, dynamic=dynamic), folder)
        weights[name] = folder.load_checkpoint("latest")["now"]["policy"]["policy"]["weight"]
        rows = folder.metrics()
        if dynamic is not None:
            assert all(row["groups/zero_spread"] == 0.0 for row in rows)
            assert all(row["rollouts"] == 4 * (4 - row["dynamic/missing"]) for row in rows)
        else:
            assert any(row["groups/zero_spread"] for row in rows)
    assert not torch.allclose(weights["plain"], weights["dapo"], atol=1e-3)
    assert not torch.allclose(weights["dapo"], weights["picky"], atol=1e-3)


def test_a_run_that_draws_again_resumes_to_the_bit(tmp_path: Path) -> None:
    whole, cut = (folder_at(tmp_path / name) for name in ("whole", "cut"))
    train(build(lying, 4, dynamic=PICKY), whole)
    assert max(row["dynamic/batches"] for row in whole.metrics()) > 1
    calls: list[int] = []

    def fragile(**columns: Any) -> Any:
        calls.append(1)
        if len(calls) > 4:
            raise ZeroDivisionError
        return lying(**columns)

    fragile.families = lying.families  # type: ignore[attr-defined]
    with pytest.raises(UsageError):
        train(build(fragile, 4, dynamic=PICKY), cut)
    train(build(lying, 4, dynamic=PICKY), RunFolder.open(cut.path), resume=True)
    assert_same_run(RunFolder.open(cut.path), whole)
    assert not same(whole.load_checkpoint("latest"), whole.load_checkpoint("iteration-000003"))


def test_rounds_that_keep_nothing_end_the_run_with_a_line(tmp_path: Path) -> None:
    experiment = build(honest, 20, None, dynamic=DynamicSampling(2.0, 3.0, batches=2))
    with pytest.raises(UsageError, match=r"in 10 rounds in a row: dynamic sampling kept no group"):
        train(replace(experiment), folder_at(tmp_path / "run"))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"score_range": (0.1, 0.9)}, "--score-range has no effect without --dynamic-sampling"),
        ({"dynamic_sampling": True, "score_range": (0.9, 0.1)}, "--score-range takes two numbers, the lower one first"),
        ({"dynamic_sampling": True, "score_range": (0.9,)}, "--score-range takes two numbers"),
        ({"max_gen_batches": 0}, "--max-gen-batches is a finite number of 1 or more, not 0"),
    ],
)
def test_options_without_effect_are_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        RunConfig(**fields)
