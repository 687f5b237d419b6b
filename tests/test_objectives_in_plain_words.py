"""Every objective against itself written as loops over numbers: losses and all metrics, on data with nothing at zero.

Numbers by hand (tests/test_objectives.py) say what an objective means; these say that nothing of it is left out where
old log-probabilities, masks, dimensions and columns are all in play.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import exp, inf, log
from typing import Any

import pytest
import torch

from autotelic.trainers import pairing
from autotelic.trainers.objectives import (
    DPO,
    NFT,
    Entropy,
    ForwardNFT,
    KLPenalty,
    PairwiseRegression,
    PPOClip,
    Term,
    WeightedImitation,
)
from autotelic.types import Batch, Evaluation

from .test_objectives import D, at, gradient, make_batch

Plain = Callable[[Evaluation, Batch], dict[str, float]]
LENGTHS = [4, 2, 3, 1, 4, 4, 2, 3]


def case(seed: int, wide: float = 0.4) -> tuple[Evaluation, Batch]:
    """Two groups of four, padded; log-ratios of about ``wide``, two scalars per decision, three segments."""
    random = torch.Generator().manual_seed(seed)
    draw = lambda: wide * torch.randn(8, 4, generator=random, dtype=D)  # noqa: E731
    logs = {"behaviour": draw() - 1, "reference": draw() - 1, "start": draw() - 1}
    batch = make_batch([1, 0, 0, 1, 0.2, 1, 0.9, 0], [[0, 1, 2, 3], [4, 5, 6, 7]], lengths=LENGTHS, dims=2, **logs)
    batch.segments = torch.tensor([0, 1, 1, 2]).expand(8, 4)
    last = torch.tensor([2, 1, 1, 0, 2, 2, 1, 1])
    rewards = torch.full((8, 3), torch.nan, dtype=D)
    rewards[range(8), last] = batch.rewards["total"][:, 0]
    batch.rewards = {"total": rewards}
    batch.advantages = torch.randn(8, 4, generator=random, dtype=D) * batch.mask
    more = {"entropy": draw().abs(), "kl": {"proximal": draw() ** 2, "reference": draw() ** 2}}
    return at(draw() - 1, **more), batch  # type: ignore[arg-type]


def decisions(batch: Batch) -> Iterator[tuple[int, int]]:
    for row, length in enumerate(batch.mask.sum(-1).tolist()):
        yield from ((row, place) for place in range(length))


def collected(values: dict[tuple[int, int], float], batch: Batch, how: str | int) -> float:
    """A mean of decisions as the objective's ``aggregate`` says."""
    if how == "decision":
        return sum(values.values()) / len(values)
    if isinstance(how, int):
        return sum(values.values()) / (len(batch) * how)
    rows = [[v for (row, _), v in values.items() if row == each] for each in range(len(batch))]
    return sum(sum(row) / len(row) for row in rows) / len(batch)


def average(values: dict[tuple[int, int], float]) -> float:
    return sum(values.values()) / len(values)


def told(objective: Term, now: Evaluation, batch: Batch) -> dict[str, float]:
    """An objective's metrics and its loss, as a learner reports them."""
    loss, metrics = objective(now, batch)
    return metrics | {"objective/loss": loss.item()}


def k3(log_ratio: float) -> float:
    return exp(-log_ratio) - 1 + log_ratio


def ratios(first: Any, second: Any, batch: Batch, level: str, size: int) -> dict[tuple[int, int], float]:
    """The log-ratio of each decision, shared within what the level says."""
    plain = {(i, t): float(first[i, t] - second[i, t]) for i, t in decisions(batch)}

    def kin(i: int, t: int) -> list[float]:
        places = [u for j, u in plain if j == i]
        if level == "segment":
            places = [u for u in places if batch.segments[i, u] == batch.segments[i, t]]
        return [plain[i, u] for u in ([t] if level == "decision" else places)]

    return {(i, t): sum(kin(i, t)) / (size * len(kin(i, t))) for i, t in plain}


def ppo(objective: PPOClip) -> Plain:
    def plain(now: Evaluation, batch: Batch) -> dict[str, float]:
        logs = batch.log_probs
        centre = {"auto": logs.get("proximal", logs["behaviour"])} | logs
        size = 2 if objective.per_dimension else 1
        log_ratios = ratios(now.log_probs.detach(), centre[objective.centre], batch, objective.level, size)
        weights = {place: 1.0 for place in log_ratios}
        if objective.importance_cap is not None:
            drift = ratios(logs["proximal"], logs["behaviour"], batch, objective.level, size)
            weights = {place: min(exp(value), objective.importance_cap) for place, value in drift.items()}
        losses, stopped = {}, {}
        for (i, t), log_ratio in log_ratios.items():
            low = float(batch.columns["clip_low"][i]) if "clip_low" in batch.columns else objective.clip_low
            high = float(batch.columns["clip_high"][i]) if "clip_high" in batch.columns else objective.clip_high
            ratio, a = exp(log_ratio), float(batch.advantages[i, t])  # type: ignore[index]
            gain = min(ratio * a, max(1 - low, min(1 + high, ratio)) * a)
            if objective.dual_clip is not None and a < 0:
                gain = max(gain, objective.dual_clip * a)
            losses[i, t] = -gain * weights[i, t]
            stopped[i, t] = float((ratio > 1 + high and a > 0) or (ratio < 1 - low and a < 0))
        return {
            "objective/loss": collected(losses, batch, objective.aggregate),
            "objective/clip_fraction": average(stopped),
            "objective/kl": average({place: k3(-value) for place, value in log_ratios.items()}),
            "objective/ratio_max": max(exp(value) for value in log_ratios.values()),
        }

    return plain


PPOS = [
    PPOClip(),
    PPOClip(0.05, 0.3),
    PPOClip(level="segment", aggregate="decision", dual_clip=1.1),
    PPOClip(level="sequence", aggregate=7),
    PPOClip(per_dimension=False, level="segment"),
    PPOClip(importance_cap=1.2),
    PPOClip(importance_cap=1.2, level="sequence", per_dimension=False),
    PPOClip(centre="behaviour"),
]


@pytest.mark.parametrize("objective", PPOS, ids=repr)
@pytest.mark.parametrize("proximal", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_the_clipped_surrogate(objective: PPOClip, proximal: bool, own: bool) -> None:
    now, batch = case(1)
    if proximal or objective.importance_cap is not None:
        batch.log_probs["proximal"] = batch.log_probs["behaviour"] + 0.3 * torch.cos(torch.arange(32.0)).view(8, 4)
    if own:
        random = torch.Generator().manual_seed(9)
        batch.columns = {n: torch.rand(8, generator=random) * 0.4 for n in ("clip_low", "clip_high")}
    metrics = told(objective, now, batch)
    wanted = ppo(objective)(now, batch)
    assert metrics == pytest.approx(wanted, rel=1e-6)
    assert 0 < wanted["objective/clip_fraction"] < 1


def test_at_the_bound_itself_nothing_is_clipped() -> None:
    for sign in (1.0, -1.0):
        batch = make_batch([0.0])
        batch.advantages = torch.tensor([[sign]], dtype=D)
        assert PPOClip(0.0, 0.0)(at([[0.0]]), batch)[1]["objective/clip_fraction"] == 0


def test_a_decision_of_no_advantage_is_not_counted_as_clipped() -> None:
    batch = make_batch([0.0, 0.0])
    batch.advantages = torch.zeros(2, 1, dtype=D)
    assert PPOClip()(at([[2.0], [-2.0]]), batch)[1]["objective/clip_fraction"] == 0


def test_ratios_beyond_reason_stay_finite_and_are_capped_alike_on_both_sides() -> None:
    for log_ratio, ratio in ((50.0, exp(20)), (-50.0, exp(-20))):
        batch = make_batch([0.0])
        batch.advantages = torch.ones(1, 1, dtype=D)
        loss, metrics = PPOClip(clip_low=inf, clip_high=inf)(at([[log_ratio]]), batch)
        assert loss.item() == pytest.approx(-ratio) and metrics["objective/ratio_max"] == pytest.approx(ratio)


def test_weights_of_importance_beyond_reason_stay_finite() -> None:
    batch = make_batch([0.0], proximal=torch.tensor([[800.0]], dtype=D))
    batch.advantages = torch.ones(1, 1, dtype=D)
    loss, _ = PPOClip(importance_cap=inf)(at([[800.0]]), batch)
    assert loss.item() == pytest.approx(-exp(20))


def nft(objective: NFT, rates: list[float]) -> Plain:
    def plain(now: Evaluation, batch: Batch) -> dict[str, float]:
        old = batch.log_probs.get("proximal", batch.log_probs["behaviour"])
        size = 2 if objective.per_dimension else 1
        log_ratios = {
            place: min(10.0, v) for place, v in ratios(now.log_probs.detach(), old, batch, "decision", size).items()
        }
        losses, low = {}, {}
        for (i, t), value in log_ratios.items():
            r = min(max(rates[i], 0.02), 0.98)
            omega = {"pass_rate": 1 - r, "std": ((1 - r) / r) ** 0.5, "none": 1.0}[objective.normalise]
            implied = (1 - r * exp(value)) / (1 - r)
            right = float(batch.returns[i]) > objective.threshold
            gain = value if right else objective.negatives * log(max(implied, 1.0))
            losses[i, t] = -omega * gain if 0 < rates[i] < 1 else 0.0
            if not right:
                low[i, t] = float(implied < 1.0)
        return {
            "objective/loss": collected(losses, batch, objective.aggregate),
            "objective/floor_fraction": average(low),
            "objective/kl": average({place: k3(-value) for place, value in log_ratios.items()}),
            "objective/ratio_max": max(exp(value) for value in log_ratios.values()),
        }

    return plain


NFTS = [NFT(), NFT("std", negatives=0.3), NFT("none", per_dimension=False), NFT(aggregate="decision"), NFT(aggregate=5)]


@pytest.mark.parametrize("objective", NFTS, ids=repr)
@pytest.mark.parametrize("proximal", [False, True])
def test_negative_aware_finetuning(objective: NFT, proximal: bool) -> None:
    """Old log-probabilities are far from 0: a ratio the wrong way round is another number."""
    now, batch = case(2)
    if proximal:
        batch.log_probs["proximal"] = batch.log_probs["behaviour"] + 0.3 * torch.cos(torch.arange(32.0)).view(8, 4)
    metrics = told(objective, now, batch)
    wanted = nft(objective, [0.5] * 8)(now, batch)
    assert metrics == pytest.approx(wanted, rel=1e-6)
    assert 0 < wanted["objective/floor_fraction"] < 1
    rates = torch.tensor([0.001, 0.001, 0.6, 0.6, 0.0, 1.0, 0.999, 0.3], dtype=D)
    batch.columns = {"pass_rate": rates}
    assert told(objective, now, batch) == pytest.approx(nft(objective, rates.tolist())(now, batch), rel=1e-6)


def test_only_what_is_above_the_threshold_is_right() -> None:
    batch = make_batch([0.5, 0.0, 1.0, 0.0])
    pulls = gradient(NFT(), at(torch.full((4, 1), 0.1)), batch)[:, 0]
    assert (pulls < 0).tolist() == [False, False, True, False], "0.5 is not above 0.5"
    assert (gradient(NFT(threshold=0.4), at(torch.full((4, 1), 0.1)), batch)[:, 0] < 0).tolist()[0]


def test_forward_nft_reads_its_columns_and_metrics() -> None:
    now, batch = case(3)
    r = torch.tensor([0.1, 0.9, 0.4, 0.6, 0.2, 0.8, 0.5, 0.3], dtype=D)
    batch.columns = {"optimality": r}
    for objective, size in ((ForwardNFT(0.7), 2), (ForwardNFT(0.7, per_dimension=False, aggregate="decision"), 1)):
        losses = {
            (i, t): 2
            * 0.7
            * ((1 - 2 * r[i]) * now.log_probs[i, t] + (1 - 2 * r[i] + 0.7) * now.kl["proximal"][i, t])
            / size
            for i, t in decisions(batch)
        }
        wanted = {
            "objective/loss": collected({k: float(v) for k, v in losses.items()}, batch, objective.aggregate),
            "objective/kl": average({(i, t): float(now.kl["proximal"][i, t]) for i, t in decisions(batch)}),
            "objective/optimality": float(r.mean()),
        }
        assert told(objective, now, batch) == pytest.approx(wanted)
    batch.columns = {}
    computed = pairing.optimality(batch).columns["optimality"]
    assert ForwardNFT()(now, batch)[1]["objective/optimality"] == pytest.approx(float(computed.mean()))


def sums(now: Evaluation, batch: Batch, against: Any) -> list[float]:
    """Per rollout the sum of its decisions' log-ratios."""
    table = ratios(now.log_probs.detach(), against, batch, "decision", 1)
    return [sum(v for (row, _), v in table.items() if row == i) for i in range(len(batch))]


def pearson(a: list[float], b: list[float]) -> float:
    ma, mb = sum(a) / len(a), sum(b) / len(b)
    over = sum((x - ma) * (y - mb) for x, y in zip(a, b, strict=True))
    return over / (sum((x - ma) ** 2 for x in a) * sum((y - mb) ** 2 for y in b)) ** 0.5


@pytest.mark.parametrize("clip", [None, 0.15])
@pytest.mark.parametrize("proximal", [False, True])
def test_pairwise_regression(clip: float | None, proximal: bool) -> None:
    now, batch = case(4)
    batch = pairing.all_pairs(batch)
    if proximal:
        batch.log_probs["proximal"] = batch.log_probs["behaviour"] + 0.2
    old = batch.log_probs["proximal" if proximal else "behaviour"]
    returns, reference = batch.returns.tolist(), batch.log_probs["start"]
    whole = sums(now, batch, reference)
    near = {
        (i, t): min(max(float(now.log_probs[i, t] - reference[i, t]), float(old[i, t] - reference[i, t]) - (clip or 0)),
                    float(old[i, t] - reference[i, t]) + (clip or 0))
        for i, t in decisions(batch)
    }  # fmt: skip
    clipped = [sum(v for (row, _), v in near.items() if row == i) for i in range(len(batch))]
    losses, predicted, target = [], [], []
    for a, b in batch.pairs.tolist():  # type: ignore[union-attr]
        goal = (returns[a] - returns[b]) / 0.8
        squares = [(whole[a] - whole[b] - goal) ** 2]
        squares += [] if clip is None else [(clipped[a] - clipped[b] - goal) ** 2]
        losses.append(max(squares))
        predicted.append(whole[a] - whole[b])
        target.append(goal)
    wanted = {
        "objective/loss": sum(losses) / len(losses),
        "objective/correlation": pearson(predicted, target),
        "objective/log_ratio_start": sum(whole) / len(whole),
    }
    if clip is not None:
        moved = {p: float(abs(near[p] - float(now.log_probs[p] - reference[p])) > 1e-12) for p in near}
        wanted["objective/clip_fraction"] = average(moved)
        assert 0 < wanted["objective/clip_fraction"] < 1
    assert told(PairwiseRegression(0.8, "start", clip), now, batch) == pytest.approx(wanted, rel=1e-6)


def test_a_correlation_needs_two_pairs_that_differ() -> None:
    for returns in ([1.0, 0.0], [1.0, 1.0, 1.0]):
        batch = pairing.all_pairs(make_batch(returns, reference=torch.zeros(len(returns), 1, dtype=D)))
        now = at([[0.1 * row] for row in range(len(returns))])
        assert PairwiseRegression(1.0)(now, batch)[1]["objective/correlation"] == 0


@pytest.mark.parametrize("level", ["sequence", "decision"])
def test_direct_preferences(level: Any) -> None:
    now, batch = case(5)
    batch = replace(
        batch, pairs=torch.tensor([[0, 1], [2, 1], [4, 7], [6, 3]]), labels=torch.tensor([1.0, 0.2, 0.7, 0.5])
    )
    reference, beta = batch.log_probs["start"], 0.6
    table = ratios(now.log_probs.detach(), reference, batch, "decision", 1)
    whole = sums(now, batch, reference)
    losses, margins, right = [], [], []
    for (a, b), p in zip(batch.pairs.tolist(), batch.labels.tolist(), strict=True):  # type: ignore[union-attr]
        both = [t for (i, t) in table if i == a and (b, t) in table]
        each = (
            [beta * (table[a, t] - table[b, t]) for t in both]
            if level == "decision"
            else [beta * (whole[a] - whole[b])]
        )
        losses.append(sum(p * log(1 + exp(-m)) + (1 - p) * log(1 + exp(m)) for m in each) / len(each))
        margins.append(sum(each) / len(each))
        right.append((margins[-1] > 0) == (p > 0.5))
    wanted = {
        "objective/loss": sum(losses) / 4,
        "objective/accuracy": sum(right) / 4,
        "objective/margin": sum(margins) / 4,
        "objective/label": (1.0 + 0.2 + 0.7 + 0.5) / 4,
    }
    assert told(DPO(beta, "start", level=level), now, batch) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("estimator", ["k3", "k2", "exact"])
@pytest.mark.parametrize("per_dimension", [False, True])
def test_penalties(estimator: Any, per_dimension: bool) -> None:
    now, batch = case(6)
    size = 2 if per_dimension else 1
    objective = KLPenalty(estimator=estimator, per_dimension=per_dimension, aggregate="decision")
    table = ratios(now.log_probs.detach(), batch.log_probs["reference"], batch, "decision", size)
    exact = {(i, t): float(now.kl["reference"][i, t]) / size for i, t in table}
    values = {
        "k3": {p: k3(v) for p, v in table.items()},
        "k2": {p: v * v / 2 for p, v in table.items()},
        "exact": exact,
    }
    mean = average(values[estimator])
    wanted = {"objective/loss": mean, "objective/kl_reference": mean}
    assert told(objective, now, batch) == pytest.approx(wanted)
    entropy = {(i, t): float(now.entropy[i, t]) / size for i, t in table}  # type: ignore[index]
    said = told(Entropy(per_dimension=per_dimension), now, batch)
    wanted = {"objective/loss": collected(entropy, batch, "rollout"), "objective/entropy": average(entropy)}
    assert said == pytest.approx(wanted)


def test_weighted_imitation_tells_what_it_did() -> None:
    now, batch = case(7)
    plain = {(i, t): float(now.log_probs[i, t]) for i, t in decisions(batch)}
    said = told(WeightedImitation(), now, batch)
    assert said == pytest.approx(
        {"objective/loss": -collected(plain, batch, "rollout"), "objective/log_prob": average(plain)}
    )
    weight = torch.linspace(0.1, 1.5, 8, dtype=D)
    batch.columns = {"weight": weight}
    weighed = {(i, t): float(weight[i]) * value for (i, t), value in plain.items()}
    said = told(WeightedImitation(aggregate=3), now, batch)
    assert said == pytest.approx(
        {
            "objective/loss": -collected(weighed, batch, 3),
            "objective/log_prob": average(plain),
            "objective/weight": float(weight.mean()),
        }
    )


def test_what_the_clipped_surrogate_asks_for() -> None:
    assert PPOClip().needs == {"advantages", "log_probs:old"}
    assert PPOClip(centre="behaviour").needs == {"advantages", "log_probs:behaviour"}
    assert PPOClip(importance_cap=2.0).needs == {
        "advantages",
        "log_probs:old",
        "log_probs:proximal",
        "log_probs:behaviour",
    }


def test_two_pairs_correlate_however_small_they_are() -> None:
    batch = replace(
        make_batch([1.0, 0.0, 0.3], reference=torch.zeros(3, 1, dtype=D)), pairs=torch.tensor([[0, 1], [1, 2]])
    )
    for size in (1.0, 1e-4):
        now = at([[size], [0.0], [size]])
        assert PairwiseRegression(1.0)(now, batch)[1]["objective/correlation"] == pytest.approx(1.0)


def test_a_pair_that_is_level_counts_as_the_second_being_preferred() -> None:
    batch = replace(make_batch([1.0, 0.0], reference=torch.zeros(2, 1, dtype=D)), pairs=torch.tensor([[0, 1]]))
    for label, right in ((0.3, 1.0), (0.7, 0.0)):
        batch.labels = torch.tensor([label])
        assert DPO()(at([[0.4], [0.4]]), batch)[1]["objective/accuracy"] == right
