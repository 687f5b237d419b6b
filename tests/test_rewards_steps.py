"""Rewards of steps by a fake sampler, and of log-ratios against their fixed point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from autotelic.errors import UsageError
from autotelic.rewards.log_ratio import LogRatio, scorer
from autotelic.rewards.reward import Reward
from autotelic.rewards.text.steps import MonteCarlo, WeakestStep, lines_of
from autotelic.rewards.text.verifiers import Exact
from autotelic.trainers.scoring import score
from autotelic.types import Rollout, Task

from .toys import TokenToy, spelling_tasks

ONE, TWO = Task("one", "2 + 2", reference="4"), Task("two", "3 + 3", reference="6")


class Sampler:
    """Goes on rightly n times in four, by how many steps of the beginning say "good"; a "bad" one ends all hope."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def __call__(self, tasks: Sequence[Task], beginnings: Sequence[str], n: int) -> list[list[str]]:
        self.asked += [(task.id, beginning) for task, beginning in zip(tasks, beginnings, strict=True)]
        rows = []
        for task, beginning in zip(tasks, beginnings, strict=True):
            hope = 0 if "bad" in beginning else min(n, 1 + beginning.count("good"))
            rows.append([f"= {task.reference}"] * hope + ["= 0"] * (n - hope))
        return rows


def test_lines_join_to_the_text_again() -> None:
    text = "a\n\nb\n c"
    assert lines_of(text) == ["a\n\n", "b\n", " c"] and "".join(lines_of(text)) == text
    assert lines_of("") == []


def test_the_value_of_a_step_is_the_share_that_succeeds_from_there() -> None:
    sampler = Sampler()
    values = MonteCarlo(sampler, Exact(), n=4)
    steps = [["good\n", "good\n", "x\n"], ["good\n", "bad\n"], ["x\n"], []]
    assert values([ONE, ONE, TWO, TWO], steps) == [[0.5, 0.75, 0.75], [0.5, 0.0], [0.25], []]
    assert sampler.asked == [
        ("one", "good\n"),
        ("one", "good\ngood\n"),
        ("one", "good\ngood\nx\n"),
        ("one", "good\nbad\n"),
        ("two", "x\n"),
    ], "beginnings that attempts share are continued once"


def rollout(task: Task, output: str) -> Rollout:
    return Rollout(task, output, {}, None, torch.ones(1, dtype=torch.bool), torch.zeros(1, dtype=torch.long))


def test_an_attempt_is_as_good_as_its_weakest_step_if_it_is_right() -> None:
    sampler = Sampler()
    reward = Reward(WeakestStep(MonteCarlo(sampler, Exact(), n=4), Exact()))
    rollouts = [rollout(ONE, "good\n= 4"), rollout(ONE, "good\nbad\n= 4"), rollout(ONE, "good\n= 5")]
    score(rollouts, reward)
    # "good" 2/4; "good = 4" goes on with "= 4" twice; the third is wrong, so that its steps are not asked about
    assert [r.scores["total"] for r in rollouts] == [0.5, 0.0, 0.0]
    assert ("one", "good\n= 5") not in sampler.asked
    every = WeakestStep(MonteCarlo(sampler, Exact(), n=4))
    assert every(completions=["good\n= 5", ""], tasks=[ONE, ONE]) == [0.5, 1.0]
    no_reference = Task("three", "?")
    assert WeakestStep(every.values, Exact())(completions=["4"], tasks=[no_reference], references=[None]) == [None]


def test_a_sampler_that_leaves_something_out_is_named() -> None:
    with pytest.raises(ValueError, match=r"^the sampler did not give 2 continuations for each of 1 beginnings"):
        MonteCarlo(lambda *_: [["x"]], Exact(), n=2)([ONE], [["a"]])
    with pytest.raises(UsageError, match=r"^0 continuations of a step say nothing"):
        MonteCarlo(Sampler(), Exact(), n=0)


# Log-ratios -----------------------------------------------------------------------------------------------------


def table(p: Tensor) -> Any:
    return lambda rollouts: [p[int(r.output)].log().item() for r in rollouts]


def attempts(lengths: Sequence[int]) -> list[Any]:
    return [
        SimpleNamespace(output=k, task=Task(f"t{k}", ""), mask=torch.arange(4) < length)
        for k, length in enumerate(lengths)
    ]


def test_a_log_ratio_by_hand() -> None:
    """log(0.8 / 0.4) = log 2 and log(0.2 / 0.6) = -log 3; of 2 and of 4 decisions."""
    a, b = torch.tensor([0.8, 0.2], dtype=torch.float64), torch.tensor([0.4, 0.6], dtype=torch.float64)
    rollouts = attempts([2, 4])
    assert LogRatio(table(a), table(b))(rollouts) == pytest.approx([math.log(2), -math.log(3)])
    each = LogRatio(table(a), table(b), per="decision")(rollouts)
    assert each == pytest.approx([math.log(2) / 2, -math.log(3) / 4])


@pytest.mark.parametrize(("to_finetuned", "beta"), [(True, 0.5), (True, 2.0), (False, 1.0)])
def test_the_best_policy_goes_on_where_the_finetuned_one_went(to_finetuned: bool, beta: float) -> None:
    """Ascent on E[r] - beta KL(pi, finetuned) ends at finetuned · (finetuned / base)^(1/beta); with the KL to the base
    and beta 1 it ends at the finetuned policy itself."""
    generator = torch.Generator().manual_seed(0)
    base, finetuned = torch.randn(2, 6, generator=generator, dtype=torch.float64).softmax(-1)
    r = torch.tensor(LogRatio(table(finetuned), table(base))(attempts([1] * 6)), dtype=torch.float64)
    anchor = finetuned if to_finetuned else base
    logits = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [logits], lr=1, max_iter=200, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        p = logits.softmax(-1)
        value: Tensor = -(p * (r - beta * (p / anchor).log())).sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)
    wanted = finetuned * (finetuned / base) ** (1 / beta) if to_finetuned else finetuned
    torch.testing.assert_close(logits.detach().softmax(-1), wanted / wanted.sum(), atol=1e-6, rtol=0)


def test_policies_score_what_they_and_others_sampled() -> None:
    tasks = spelling_tasks()
    base = TokenToy(len(tasks))
    moved = base.fork("moved")
    with torch.no_grad():
        moved.module.weight.normal_(generator=torch.Generator().manual_seed(0))
    rollouts = moved.act(tasks, 2)
    own = torch.stack([r.log_probs.sum() for r in rollouts if r.log_probs is not None])
    torch.testing.assert_close(torch.as_tensor(scorer(moved)(rollouts)), own)
    uniform = torch.tensor([-len(r.output) * math.log(base.VOCABULARY) for r in rollouts])
    ratios = torch.tensor(LogRatio(scorer(moved), scorer(base))(rollouts))
    torch.testing.assert_close(ratios, own - uniform)


def test_scores_that_are_none_are_named() -> None:
    good = table(torch.tensor([0.5, 0.5]))
    with pytest.raises(ValueError, match=r'^the scorer "over" gave -inf for the rollout of t1'):
        LogRatio(good, table(torch.tensor([1.0, 0.0])))(attempts([1, 1]))
    with pytest.raises(ValueError, match=r'^the scorer "of" gave 0 log-probabilities for 2 rollouts'):
        LogRatio(lambda _: [], good)(attempts([1, 1]))
    with pytest.raises(UsageError, match=r'^unknown unit of a log-ratio "token"'):
        LogRatio(good, good, per="token")  # type: ignore[arg-type]
