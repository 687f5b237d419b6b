"""Pairs that a policy makes of its own answers: by hand, and on a policy of forty responses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.stats import kendalltau, rankdata
from torch import Tensor, nn

from autotelic.rewards.text.agreement import consistency, ordinal_consistency, same_extremes
from autotelic.testing.vlms import text
from autotelic.trainers.learner import Optimisation, PolicyLearner
from autotelic.trainers.objectives.preference import DPO
from autotelic.trainers.pairing import best_worst, paired
from autotelic.trainers.policy import TorchPolicy, collate
from autotelic.trainers.randomness import generator
from autotelic.trainers.scoring import score
from autotelic.types import Batch, Evaluation, Rollout, Task
from autotelic.vlm.pairs import Judges, PastAndFuture, consistent_pairs, kept_score
from autotelic.vlm.policy import TokenPolicy

RESPONSES = 40
QUALITY = torch.linspace(-2.0, 2.0, RESPONSES)[torch.randperm(RESPONSES, generator=generator("quality"))]


class Categorical(TorchPolicy):
    """One of forty responses to whatever is asked."""

    capabilities = frozenset({"exact"})

    def __init__(self, logits: Tensor | None = None) -> None:
        super().__init__(nn.Embedding(1, RESPONSES if logits is None else len(logits)))
        with torch.no_grad():
            self.module.weight[0] = torch.zeros(RESPONSES) if logits is None else logits

    def act(self, tasks: Sequence[Task], n: int, *, key: tuple[int, ...] = (0,), **_: Any) -> list[Rollout]:
        log_probs = self.module.weight.detach()[0].log_softmax(-1)
        found = []
        for task in tasks:
            picks = torch.multinomial(log_probs.exp(), n, replacement=True, generator=generator(*key, task.id))
            found += [rollout(task, int(pick), float(log_probs[pick])) for pick in picks]
        return found

    def forward_decisions(self, batch: Batch, needs: frozenset[str], references: Mapping[str, Any]) -> Evaluation:
        return Evaluation(self.module.weight[0].log_softmax(-1)[batch.payload["pick"]])


def rollout(task: Task, pick: int, log_prob: float = 0.0) -> Rollout:
    one = torch.ones(1, dtype=torch.bool)
    return Rollout(task, pick, {"pick": torch.tensor([pick])}, torch.tensor([log_prob]), one, one.long() * 0)


def answers(*picks: Sequence[int]) -> Batch:
    """A group of answers for each list of picks."""
    rollouts = [rollout(Task(f"t{i}", ""), pick) for i, group in enumerate(picks) for pick in group]
    return collate(rollouts, [1] * len(rollouts))


NOW = torch.tensor([3.0, 1.0, 2.0, 5.0, 6.0, 7.0, 8.0, 8.0])
BEFORE = torch.tensor([2.0, 1.0, 3.0, 7.0, 6.0, 5.0, 1.0, 2.0])


def test_labels_are_how_far_the_ranking_before_agrees() -> None:
    """Three groups: one inversion of three pairs (tau 1/3, C 2/3); reversed (C 0); tied now, so no pair."""
    batch = answers([0, 1, 2], [3, 4, 5], [6, 7])
    own = consistent_pairs(batch, NOW, BEFORE)
    assert own.pairs is not None and own.labels is not None
    assert own.pairs.tolist() == [[0, 1], [5, 3]]
    assert own.labels.tolist() == pytest.approx([2 / 3, 0.0])
    together = consistent_pairs(batch, NOW, BEFORE, label=0.25)
    assert together.labels is not None and together.labels.tolist() == [0.25, 0.25]
    extremes = consistent_pairs(batch, NOW, BEFORE, agreement=same_extremes)
    assert extremes.labels is not None and extremes.labels.tolist() == [0.0, 0.0]
    first_out = consistent_pairs(batch, torch.cat([torch.tensor([torch.nan]), NOW[1:]]), BEFORE)
    assert first_out.pairs is not None and first_out.pairs.tolist() == [[2, 1], [5, 3]]
    nothing = consistent_pairs(answers([0], [1]), NOW[:2], BEFORE[:2])
    assert nothing.pairs is not None and nothing.labels is not None
    assert len(nothing.pairs) == len(nothing.labels) == 0


def test_equal_answers_agree_as_in_the_released_code() -> None:
    """By hand: [1, 1, 2] and [5, 5, 3] have ordinal ranks 0 1 2 and 1 2 0: one pair of three agrees, tau -1/3."""
    assert ordinal_consistency([1, 1, 2], [5, 5, 3]) == pytest.approx(1 / 3)
    assert consistency([1, 1, 2], [5, 5, 3]) == 0.0 and ordinal_consistency([4, 4], [7, 7]) == 1.0
    draw = generator("ranks")
    for _ in range(20):
        first, second = (torch.randint(4, (6,), generator=draw).tolist() for _ in range(2))
        places = (rankdata(scores, method="ordinal") for scores in (first, second))
        assert ordinal_consistency(first, second) == pytest.approx((kendalltau(*places)[0] + 1) / 2)


def test_the_loss_of_a_soft_label_by_hand() -> None:
    """beta d = 0.5 (2 - (-1)) = 1.5; -(0.75 log s(1.5) + 0.25 log s(-1.5)) = 0.75 x 0.201413 + 0.25 x 1.701413."""
    batch = answers([0, 1])
    batch.pairs, batch.log_probs["reference"] = torch.tensor([[0, 1]]), torch.zeros(2, 1)
    batch.labels = torch.tensor([0.75])
    loss, _ = DPO(beta=0.5)(Evaluation(torch.tensor([[2.0], [-1.0]])), batch)
    assert loss.item() == pytest.approx(0.75 * 0.201413 + 0.25 * 1.701413, abs=1e-5)


def judged(judges: Judges, *picks: Sequence[int]) -> list[Rollout]:
    rollouts = [rollout(Task(f"t{i}", ""), pick) for i, group in enumerate(picks) for pick in group]
    score(rollouts, judges)
    return rollouts


def test_every_judge_ranks_against_the_policy_that_its_round_began_from() -> None:
    """M_0 by likelihood, M_1 against M_0, M_2 against M_1: by hand, on the logits of six answers."""
    first = Categorical(torch.tensor([0.0, 1.0, 2.0, 0.0, 0.0, 0.0]))
    policy = Categorical(torch.tensor([3.0, 1.0, 0.0, 0.0, 0.0, 0.0]))
    judges = Judges(policy, first)
    rollouts = judged(judges, [0, 1, 2])
    now, before = ([float(r.scores[name]) for r in rollouts] for name in ("total", "before"))  # type: ignore[arg-type]
    (shift,) = {round(a - b, 3) for a, b in zip(now, (3.0, 0.0, -2.0), strict=True)}  # one normaliser
    expected = first.module.weight.detach()[0].log_softmax(-1)[:3].tolist()
    assert before == pytest.approx(expected, abs=1e-4) and abs(shift) < 1.0
    metrics = judges.update(rollouts)
    assert metrics == {"cream/consistency": judges.consistency} == {"cream/consistency": 0.0}  # turned round
    assert torch.equal(judges.previous.module.weight, policy.module.weight)
    assert torch.equal(judges.earlier.module.weight, first.module.weight)
    with torch.no_grad():
        policy.module.weight.copy_(torch.tensor([[3.0, 2.0, 0.5, 0.0, 0.0, 0.0]]))  # 1 was raised most, then 2
    second = judged(judges, [0, 1, 2])
    now, then = ([float(r.scores[name]) for r in second] for name in ("total", "before"))  # type: ignore[arg-type]
    assert sorted(range(3), key=now.__getitem__) == [0, 2, 1]
    assert then == pytest.approx([3.0 + shift, 0.0 + shift, -2.0 + shift], abs=1e-3)
    state = judges.state_dict()
    again = Judges(policy, first)
    again.load_state_dict(state)
    assert torch.equal(again.previous.module.weight, judges.previous.module.weight)


def test_pairs_carry_the_mean_consistency_or_their_own_or_none() -> None:
    first = Categorical(torch.tensor([0.0, 1.0, 2.0, 3.0, 0.0, 0.0]))
    policy = Categorical(torch.tensor([0.0, 2.0, 4.0, 0.0, 5.0, 0.0]))
    labels = {}
    for name, options in {"round": {}, "question": {"per": "question"}, "hard": {"soften": False}}.items():
        judges = Judges(policy, first, **options)  # type: ignore[arg-type]
        rollouts = judged(judges, [0, 1, 2], [0, 3])  # raised 0, 1, 2 and 0, -3: C 1 and 0
        judges.update(rollouts)
        made = judges.pairs(policy.collate(rollouts))
        assert made.pairs is not None and made.labels is not None and made.pairs.tolist() == [[2, 0], [3, 4]]
        labels[name] = made.labels.tolist()
    assert labels == {"round": [0.5, 0.5], "question": [1.0, 0.0], "hard": [1.0, 1.0]}
    with pytest.raises(ValueError, match='unknown scope of a consistency "batch"'):
        Judges(policy, first, per="batch")  # type: ignore[arg-type]


def test_a_learner_on_softened_pairs_moves_towards_their_margin() -> None:
    """DPO's margin of a pair with label C rests at log(C / (1 - C))."""
    policy = Categorical(torch.tensor([0.0, 0.0, 0.0]))
    batch_margin = []
    learner = PolicyLearner(
        policy,
        DPO(beta=1.0),
        Optimisation(lr=0.1, epochs=120),
        prepare=[lambda batch: replace(best_worst(batch), labels=torch.tensor([0.8]))],
        references={"reference": policy.fork("reference")},
    )
    rollouts = [rollout(Task("t", ""), pick) for pick in (0, 1)]
    for attempt, value in zip(rollouts, (1.0, 0.0), strict=True):
        attempt.scores["total"] = value
    learner.update(rollouts)
    logits = policy.module.weight.detach()[0]
    batch_margin.append(float(logits[0] - logits[1]))
    assert batch_margin[0] == pytest.approx(math.log(4), abs=0.02)


def noisy(rollouts: Sequence[Rollout], **columns: Any) -> list[float]:
    """A judge with an error of 0.3, the same whenever it sees this answer to this task."""
    noise = [torch.randn(1, generator=generator("judge", r.task.id, r.output)) for r in rollouts]
    return [float(QUALITY[r.output] + 0.3 * e) for r, e in zip(rollouts, noise, strict=True)]


TASKS = [Task(f"task-{i}", "") for i in range(30)]
STEP = Optimisation(lr=0.2, epochs=4)


def test_pairs_from_three_times_by_hand() -> None:
    values = {0: 0.0, 1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0}

    class Says(Categorical):
        def __init__(self, picks: Sequence[int]) -> None:
            super().__init__()
            self.picks = picks

        def act(self, tasks: Sequence[Task], n: int, **_: Any) -> list[Rollout]:
            return [rollout(task, pick) for task in tasks for pick in self.picks]

    def judge(rollouts: Sequence[Rollout], **_: Any) -> list[float]:
        return [values[r.output] for r in rollouts]

    def pair(mine: Sequence[int], past: Sequence[int]) -> list[tuple[int, str]]:
        actor = PastAndFuture(Says(mine), Says(past), judge, STEP, guided=False)
        return [(r.output, r.info["source"]) for r in actor.act(TASKS[:1], len(mine))]

    assert pair([2, 3], [1, 4]) == [(3, "policy"), (1, "past")]
    assert pair([2, 3], [2, 4]) == [(3, "policy"), (2, "policy")]  # the past is no worse
    assert pair([2, 2], [3, 4]) == []  # nothing is better than anything
    actor = PastAndFuture(Says([2, 3]), Says([1, 1]), judge, STEP)
    actor._future = lambda chosen, rejected: Says([0, 4])  # type: ignore[method-assign]
    made = actor.act(TASKS[:2], 2)
    assert [(r.output, r.info["source"]) for r in made] == 2 * [(4, "future"), (1, "past")]
    assert len({r.group for r in made}) == 2 and score(made, kept_score)["reward"] == 2.5
    assert [r.output for r in actor.act(TASKS[:1], 2, mode="evaluate")] == [2, 3]


def gaps(actor: Any, policy: Categorical, reward: Any, **sampling: Any) -> list[float]:
    """The judge's mean gap of the pairs that each of six rounds of DPO learns from."""
    objective = DPO(0.1, reference="proximal")
    learner = PolicyLearner(policy, objective, STEP, prepare=[best_worst])
    found = []
    for round_ in range(6):
        rollouts = actor.act(TASKS, 7, key=(0, round_), **sampling)
        score(rollouts, reward)
        batch = best_worst(policy.collate(rollouts))
        assert batch.pairs is not None
        returns = batch.returns[batch.pairs]
        found.append(float((returns[:, 0] - returns[:, 1]).mean()))
        learner.update(rollouts)
    return found


def test_pairs_drawn_apart_in_time_keep_their_gap() -> None:
    """Catalogue of the paper's claim: a self-rewarding policy's own best and worst become alike; these do not."""
    plain = Categorical()
    alone = gaps(plain, plain, noisy)
    kept = {}
    for guided in (False, True):
        policy = Categorical()
        past = policy.fork("past")
        actor = PastAndFuture(policy, past, noisy, STEP, guided=guided)
        kept[guided] = gaps(actor, policy, kept_score)
        assert torch.equal(past.module.weight, torch.zeros(1, RESPONSES))
    assert alone[-1] < 0.6 * alone[0], alone
    assert all(rounds[-1] > 0.95 * rounds[0] for rounds in kept.values()), kept
    assert kept[True][0] >= kept[False][0] > alone[0], (alone, kept)


def test_the_future_is_dropped_and_only_what_learns_is_trained() -> None:
    policy = Categorical()
    actor = PastAndFuture(policy, policy.fork("past"), noisy, STEP)
    actor.act(TASKS[:8], 4)
    assert torch.equal(policy.module.weight, torch.zeros(1, RESPONSES))
    base = actor.fork("base")
    with torch.no_grad():
        policy.module.weight.add_(1.0)
    assert not bool(base.module.weight.any())
    actor.copy_from(base)
    assert not bool(policy.module.weight.any())
    with pytest.raises(ValueError, match="task task-0: a judge of pairs scores every attempt"):
        silent = PastAndFuture(policy, policy.fork("past"), lambda rollouts, **_: [None, *[1.0] * 3], STEP)
        silent.act(TASKS[:1], 4)


def test_token_policies_make_pairs_of_their_own() -> None:
    policy = TokenPolicy.of(*text("llama"), horizon=4)
    small = Optimisation(lr=0.003, epochs=4)
    start = {name: value.clone() for name, value in policy.state_dict().items()}
    actor = PastAndFuture(policy, policy.fork("past"), lambda outputs, **_: [float(len(o)) for o in outputs], small)
    made = actor.act([Task("a", "how many ?"), Task("b", "what is red ?")], 4, key=(1,))
    assert {r.info["source"] for r in made[::2]} <= {"policy", "future"} and {r.info["source"] for r in made[1::2]} <= {
        "policy",
        "past",
    }
    assert len(made) == 4 and all(len(a.output) > len(b.output) for a, b in zip(made[::2], made[1::2], strict=True))
    assert all(torch.equal(value, start[name]) for name, value in policy.state_dict().items())
    score(made, kept_score)
    judges = Judges(policy, policy.fork("first"))
    score(made, judges)
    learner = PolicyLearner(policy, DPO(reference="proximal"), small, prepare=[judges.pairs, paired])
    assert judges.update(made)["cream/consistency"] == 1.0, "M_0 and M_1 are the same"
    metrics = learner.update(made)
    assert metrics["objective/loss"] < math.log(2) and metrics["objective/margin"] > 0
    assert any(not torch.equal(value, start[name]) for name, value in policy.state_dict().items())
    assert all(torch.equal(value, start[name]) for name, value in judges.previous.state_dict().items())


def test_rows_without_a_pair_are_left_out_of_the_steps() -> None:
    batch = answers([0, 1, 2], [3, 4, 5])
    batch.pairs, batch.labels = torch.tensor([[2, 0]]), torch.tensor([0.7])
    part = paired(batch)
    assert part.payload["pick"].flatten().tolist() == [0, 2] and part.pairs is not None
    assert part.pairs.tolist() == [[1, 0]] and part.labels is not None
    torch.testing.assert_close(part.labels, torch.tensor([0.7]))
