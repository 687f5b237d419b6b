"""Curricula against frequencies and numbers worked out by hand."""

from __future__ import annotations

from collections import Counter
from math import exp
from typing import Any

import pytest
import torch

from autotelic.trainers.curricula import SEC, ProgressiveHorizon, Uniform, apart
from autotelic.types import Rollout, Task, Verdict

NONE = torch.zeros(1)


def endless(category: str) -> Any:
    return lambda index: Task(f"{category}-{index}", category, horizon=150)


SOURCES = {name: endless(name) for name in ("a", "b", "c")}


def seen(**advantages: float) -> list[Rollout]:
    """One rollout per category with this mean |advantage|."""
    tasks = {name: Task(f"{name}-x", name, category=name) for name in advantages}
    return [
        Rollout(tasks[name], None, {}, NONE, NONE.bool(), NONE.long(), info={"abs_advantage": size})
        for name, size in advantages.items()
    ]


def drawn(tasks: list[Task]) -> Counter[str]:
    return Counter(task.category for task in tasks)


def harmed(*categories: str) -> Verdict:
    return Verdict("repair", harmed=categories)


@pytest.mark.parametrize("n", [1, 3, 7, 30])
def test_uniform_is_as_even_as_can_be(n: int) -> None:
    curriculum = Uniform(SOURCES, seed=1)
    total: Counter[str] = Counter()
    for _ in range(60):
        counts = drawn(curriculum.sample(n))
        assert max(counts.values()) - min(counts[name] for name in SOURCES) <= 1
        total += counts
        curriculum.update([])
    assert all(abs(total[name] / (60 * n) - 1 / 3) < 0.15 for name in SOURCES)


def test_lists_are_shuffled_anew_for_every_pass_and_endless_sources_never_repeat() -> None:
    listed = [Task(f"t{i}", i) for i in range(9)]
    curriculum = Uniform({"list": listed, "function": endless("f")}, seed=1)
    tasks = curriculum.sample(54)
    order = [t.id for t in tasks if t.category == "list"]
    passes = [order[start : start + 9] for start in (0, 9, 18)]
    assert all(sorted(one) == [task.id for task in listed] for one in passes), "each once before any comes twice"
    assert len({tuple(one) for one in [*passes, [task.id for task in listed]]}) == 4
    assert [t.id for t in tasks if t.category == "function"] == [f"f-{i}" for i in range(27)]
    with pytest.raises(ValueError, match="at least one category"):
        Uniform({})
    with pytest.raises(ValueError, match='the category "none" has no task'):
        Uniform({"some": listed, "none": []})


def test_orders_hang_on_seed_and_category_and_not_on_who_else_is_drawn() -> None:
    listed = [Task(f"t{i}", i) for i in range(30)]

    def order(seed: int, category: str, **others: Any) -> list[str]:
        tasks = Uniform({category: listed, **others}, seed=seed).sample(30 * (1 + len(others)))
        return [t.id for t in tasks if t.category == category]

    assert order(1, "a") == order(1, "a", b=listed)
    assert len({tuple(order(*key)) for key in ((1, "a"), (2, "a"), (1, "b"))}) == 3


def test_a_task_that_comes_again_in_a_round_is_another() -> None:
    tasks = [Task(name, prompt) for prompt, name in enumerate(["a", "b", "a", "a/again/1", "a", "b"])]
    found = apart(tasks)
    assert [task.prompt for task in found] == list(range(6)) and len({task.id for task in found}) == 6
    assert [task.id for task in found[:2]] == ["a", "b"] and found[3].id == "a/again/1", "names of others are kept"
    assert apart(found) == found


def test_quarantine_leaves_out_what_was_harmed_for_a_while() -> None:
    curriculum = Uniform(SOURCES, quarantine=2)
    assert curriculum.repair(harmed("b")) == {"curriculum/open": 2}
    for _ in range(2):
        assert set(drawn(curriculum.sample(12))) == {"a", "c"}
        curriculum.update([])
    assert set(drawn(curriculum.sample(12))) == {"a", "b", "c"}
    curriculum.repair(harmed("a", "b", "c"))
    assert set(drawn(curriculum.sample(12))) == {"a", "b", "c"}, "with nothing left, everything is open"


def test_sec_moves_half_way_to_the_mean_advantage() -> None:
    curriculum = SEC(SOURCES, rate=0.5)
    curriculum.update([*seen(a=0.8, b=0.4), *seen(a=0.4)])  # a: mean 0.6
    assert curriculum.values == pytest.approx({"a": 0.3, "b": 0.2, "c": 0.0})
    metrics = curriculum.update(seen(a=0.1))  # 0.5 * 0.1 + 0.5 * 0.3
    assert curriculum.values == pytest.approx({"a": 0.2, "b": 0.2, "c": 0.0})
    assert metrics["curriculum/value/a"] == pytest.approx(0.2)


def test_sec_samples_by_the_softmax() -> None:
    curriculum = SEC(SOURCES, temperature=0.4, rate=1.0, seed=3)
    total: Counter[str] = Counter()
    for _ in range(40):
        curriculum.update(seen(a=0.8, b=0.4, c=0.0))
        total += drawn(curriculum.sample(100))
    weights = {"a": exp(2), "b": exp(1), "c": 1.0}  # Q / tau = 2, 1, 0
    for name, weight in weights.items():
        assert total[name] / 4000 == pytest.approx(weight / sum(weights.values()), abs=0.03)
    with pytest.raises(ValueError, match="temperature above 0"):
        SEC(SOURCES, temperature=0)


def test_the_horizon_grows_by_updates() -> None:
    curriculum = ProgressiveHorizon(Uniform(SOURCES), [(0, 1 / 3), (2, 2 / 3), (3, 1.0)])
    horizons = []
    for _ in range(5):
        (task,) = curriculum.sample(1)
        horizons.append(task.horizon)
        assert curriculum.update([])["curriculum/horizon_share"] * 150 == pytest.approx(task.horizon)
    assert horizons == [50, 50, 100, 150, 150]
    with pytest.raises(ValueError, match="shares"):
        ProgressiveHorizon(Uniform(SOURCES), [(0, 50)])
    with pytest.raises(ValueError, match=r"set Task\.horizon"):
        ProgressiveHorizon(Uniform({"a": [Task("a-0", "a")]}), [(0, 0.5)]).sample(1)
    for stages in ([], [(1, 0.5)], [(0, 0.5), (0, 0.6)]):
        with pytest.raises(ValueError, match="start at update 0"):
            ProgressiveHorizon(Uniform(SOURCES), stages)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Uniform(SOURCES, seed=5, quarantine=3),
        lambda: SEC(SOURCES, seed=5, quarantine=3),
        lambda: ProgressiveHorizon(SEC(SOURCES, seed=5, quarantine=3), [(0, 0.5), (2, 1.0)]),
    ],
)
def test_a_restored_curriculum_goes_on_as_if_nothing_had_happened(make: Any) -> None:
    def step(curriculum: Any) -> list[Any]:
        tasks = curriculum.sample(5)
        curriculum.update(seen(a=0.3, b=0.9))
        return [(task.id, task.horizon) for task in tasks]

    one, other = make(), make()
    step(one)
    one.repair(harmed("a"))
    step(one)
    other.load_state_dict(one.state_dict())
    assert [step(one) for _ in range(4)] == [step(other) for _ in range(4)]
