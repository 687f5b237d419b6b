"""Every advantage, pairing and objective against numbers worked out by hand, and the identities between them."""

from __future__ import annotations

from dataclasses import replace
from math import exp, log

import pytest
import torch
from torch import Tensor

from autotelic.errors import UsageError
from autotelic.trainers import advantages, pairing
from autotelic.trainers.config import SelectionFields
from autotelic.trainers.learner import Optimisation, PolicyLearner
from autotelic.trainers.objectives import (
    DPO,
    NFT,
    Entropy,
    ForwardNFT,
    KLPenalty,
    PairwiseRegression,
    PPOClip,
    Reinforce,
    Term,
    WeightedImitation,
)
from autotelic.types import Batch, Evaluation

from .toys import DenoiserToy, TokenToy, drawing_tasks, spelling_tasks

D = torch.float64


def make_batch(
    returns: list[float],
    groups: list[list[int]] | None = None,
    lengths: list[int] | None = None,
    dims: int = 1,
    **log_probs: Tensor,
) -> Batch:
    """Rollouts with one segment each; groups as lists of rows, by default everything in one."""
    size = len(returns)
    lengths = lengths or [1] * size
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    incidence = torch.zeros(len(groups or [0]), size, dtype=torch.bool)
    for row, members in enumerate(groups or [list(range(size))]):
        incidence[row, members] = True
    zeros = torch.zeros_like(mask, dtype=torch.long)
    return Batch(
        payload={},
        mask=mask,
        segments=zeros,
        dims=zeros + dims,
        log_probs={"behaviour": zeros.to(D)} | log_probs,
        rewards={"total": torch.tensor(returns, dtype=D)[:, None]},
        groups=incidence,
    )


def at(log_probs: list[list[float]] | Tensor, **more: Tensor) -> Evaluation:
    """Leaves at the given log-probabilities."""
    return Evaluation(torch.as_tensor(log_probs, dtype=D), **more).leaves()


def gradient(objective: Term, now: Evaluation, batch: Batch) -> Tensor:
    return now.gradient_of(objective(now, batch)[0]).log_probs


def near(a: Tensor, b: object, tolerance: float = 1e-6) -> bool:
    return torch.allclose(a.to(D), torch.as_tensor(b, dtype=D), atol=tolerance, rtol=0)


# ---------------------------------------------------------------------------------------------- advantages


def test_group_advantages_by_hand() -> None:
    batch = make_batch([1, 0, 0, 1, 3, 1], [[0, 1, 2, 3], [4, 5]])
    # Group one: mean 1/2, unbiased variance 4 (1/4) / 3 = 1/3. Group two: mean 2, variance 2.
    a, b = 0.5 * 3**0.5, 1 / 2**0.5
    assert near(advantages.grpo()(batch)[:, 0], [a, -a, -a, a, b, -b], 5e-6)
    assert near(advantages.dr_grpo()(batch)[:, 0], [0.5, -0.5, -0.5, 0.5, 1, -1])
    # Leave one out: the mean of the others is 1/3 for a winner (1 - 1/3 = 2/3), and the other one in a pair.
    assert near(advantages.rloo()(batch)[:, 0], [2 / 3, -2 / 3, -2 / 3, 2 / 3, 2, -2])
    # A floor of 2 is above both deviations: 0.5 / 2 and 1 / 2.
    assert near(advantages.grpo(std_floor=2.0)(batch)[:, 0], [0.25, -0.25, -0.25, 0.25, 0.5, -0.5], 2e-6)


def test_overlapping_groups_average() -> None:
    batch = make_batch([3, 0, 0, 4], [[0, 1, 2], [2, 3]])
    # Means 1 and 2: row 2 is at -1 in one group and at -2 in the other.
    assert near(advantages.dr_grpo()(batch)[:, 0], [2, -1, -1.5, 2])


def test_zero_spread_is_exactly_zero_and_counted() -> None:
    batch = make_batch([0.1, 0.1, 0.1, 1, 0, 0.5], [[0, 1, 2], [3, 4], [5, 0]])
    assert advantages.grpo()(batch)[1:3].abs().max() == 0  # the mean of three 0.1 is not 0.1 in binary
    assert advantages.zero_spread(batch).tolist() == [True, False, False]
    assert advantages.informative(batch).tolist() == [True, False, False, True, True, True]


def test_nan_returns_take_no_part() -> None:
    batch = make_batch([2, float("nan"), 0, float("nan")], [[0, 1, 2], [1, 3]])
    assert near(advantages.dr_grpo()(batch)[:, 0], [1, 0, -1, 0])
    assert near(advantages.rloo()(batch)[:, 0], [2, 0, -2, 0])
    assert near(advantages.ReinforcePlusPlus()(batch)[:, 0], [0.5**0.5, 0, -(0.5**0.5), 0])


def test_groups_of_one_are_refused() -> None:
    with pytest.raises(ValueError, match=r"group 1 holds one rollout \(row 2\)"):
        advantages.grpo()(make_batch([1, 0, 1], [[0, 1], [2]]))
    with pytest.raises(ValueError, match="2 or more per task, not 1"):
        advantages.grpo().check(1)
    advantages.grpo().check(2)
    with pytest.raises(ValueError, match="2 or more per task, not 1"):
        advantages.ReinforcePlusPlus("group").check(1)
    advantages.ReinforcePlusPlus().check(1)


def test_per_segment_advantages_compare_rewards_to_go() -> None:
    batch = make_batch([0, 0, 0], lengths=[3, 3, 1])
    batch.segments = torch.tensor([[0, 0, 1], [0, 1, 1], [0, 0, 0]])
    batch.rewards = {"total": torch.tensor([[1.0, 2.0], [0.0, 1.0], [5.0, torch.nan]])}
    # To go: (3, 2), (1, 1), (5). Segment 0: mean 3. Segment 1: only two have it, mean 1.5.
    assert near(
        advantages.GroupRelative(scale="none", per_segment=True)(batch), [[0, 0, 0.5], [-2, -0.5, -0.5], [2, 0, 0]]
    )
    # Shaping counts in the segment of its decision. To go: (4.5, 3), (1, 1), (5); means 3.5 and 2.
    batch.shaping = torch.tensor([[0.5, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert near(
        advantages.GroupRelative(scale="none", per_segment=True)(batch), [[1, 1, 1], [-2.5, -1, -1], [1.5, 0, 0]]
    )


def test_shaping_is_answered_for_from_its_decision_on() -> None:
    batch = make_batch([1, 0], lengths=[1, 3])
    batch.shaping = torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.0, -1.0]])
    # With the return: 3 and 0, -1, -1. Mean 1/4, deviations 11/4, -1/4, -5/4, -5/4; variance (172/16) / 3.
    wanted = [[11 / 4, 0, 0], [-1 / 4, -5 / 4, -5 / 4]]
    assert near(advantages.ReinforcePlusPlus()(batch), torch.tensor(wanted, dtype=D) / (43 / 12) ** 0.5)


def test_reinforce_plus_plus_counts_decisions() -> None:
    batch = make_batch([1, 0], lengths=[1, 3])
    # Over four decisions 1, 0, 0, 0: mean 1/4, variance (9/16 + 3/16) / 3 = 1/4.
    assert near(advantages.ReinforcePlusPlus()(batch), [[1.5, 0, 0], [-0.5, -0.5, -0.5]])
    # With the group mean taken off first: 1/2, -1/2 x 3, mean -1/4, deviations 3/4 and -1/4: the same here.
    assert near(advantages.ReinforcePlusPlus("group")(batch), [[1.5, 0, 0], [-0.5, -0.5, -0.5]])
    # Two groups of one decision each: deviations from 7/4 without the baseline, and from 0 with it.
    batch, apart = make_batch([1, 0, 4, 2], [[0, 1], [2, 3]]), torch.tensor([-0.75, -1.75, 2.25, 0.25], dtype=D)
    assert near(advantages.ReinforcePlusPlus()(batch)[:, 0], apart / (8.75 / 3) ** 0.5)
    within = torch.tensor([0.5, -0.5, 1.0, -1.0], dtype=D)
    assert near(advantages.ReinforcePlusPlus("group")(batch)[:, 0], within / (2.5 / 3) ** 0.5)


def test_reinforce_plus_plus_sums_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    together = advantages.ReinforcePlusPlus()(make_batch([1, 0, 4, 1, 0, 4], lengths=[1, 3, 2, 1, 3, 2]))
    monkeypatch.setattr(advantages, "reduce_sum", lambda tensor: 2 * tensor)  # two processes with the same data
    assert near(advantages.ReinforcePlusPlus()(make_batch([1, 0, 4], lengths=[1, 3, 2])), together[:3])


# ------------------------------------------------------------------------------------------------- pairing


def test_pairs_of_groups() -> None:
    batch = make_batch([1, 3, 2, float("nan"), 2, 2], [[0, 1, 2, 3], [1, 2], [4, 5]])
    paired = pairing.all_pairs(batch)
    assert paired.pairs.tolist() == [[0, 1], [0, 2], [1, 2], [4, 5]] and batch.pairs is None
    best = pairing.best_worst(batch)
    assert best.pairs.tolist() == [[1, 0], [1, 2]] and best.labels.tolist() == [1, 1]
    soft = pairing.preference_pairs(batch, temperature=2.0)
    assert near(soft.labels, [1 / (1 + exp(1)), 1 / (1 + exp(0.5)), 1 / (1 + exp(-0.5)), 0.5])


def test_no_pairs_at_all() -> None:
    batch = make_batch([1, 1], [[0], [1]])
    assert pairing.all_pairs(batch).pairs.shape == (0, 2)
    assert pairing.best_worst(batch).pairs.shape == (0, 2)
    assert pairing.preference_pairs(batch).labels.shape == (0,)


def test_weights_and_rates_of_groups() -> None:
    batch = make_batch([1, 3, 2, float("nan"), 0, 0], [[0, 1, 2, 3], [4, 5]])
    assert pairing.best_of_group(batch, 2).columns["weight"].tolist() == [0, 1, 1, 0, 1, 1]
    assert pairing.threshold(batch, 1).columns["weight"].tolist() == [0, 1, 1, 0, 0, 0]
    rules = {
        SelectionFields(): [0, 1, 0, 0, 1, 0],
        SelectionFields(best=2): [0, 1, 1, 0, 1, 1],
        SelectionFields("threshold"): [1, 1, 1, 0, 0, 0],
        SelectionFields("threshold", threshold=1.0): [0, 1, 1, 0, 0, 0],
    }
    for config, weights in rules.items():
        assert pairing.selected(config)(batch).columns["weight"].tolist() == weights, config
    with pytest.raises(UsageError, match="--threshold has no effect with --select best"):
        pairing.selected(SelectionFields(threshold=0.5))
    with pytest.raises(UsageError, match="--best 2 has no effect with --select threshold"):
        pairing.selected(SelectionFields("threshold", best=2))
    assert near(pairing.pass_rate(batch, 1).columns["pass_rate"], [2 / 3, 2 / 3, 2 / 3, 2 / 3, 0, 0])
    # Mean 2, largest deviation 1; a group without spread is neither good nor bad.
    assert near(pairing.optimality(batch).columns["optimality"], [0, 1, 0.5, 0.5, 0.5, 0.5])
    assert near(pairing.optimality(batch, scale=4.0).columns["optimality"], [0.375, 0.625, 0.5, 0.5, 0.5, 0.5])
    with pytest.raises(ValueError, match="row 2 is in no group"):
        pairing.pass_rate(make_batch([1, 0, 1], [[0, 1]]))


# ---------------------------------------------------------------------------------------- policy gradients


def test_reinforce_by_hand() -> None:
    batch = make_batch([0, 0], lengths=[2, 1])
    batch.advantages = torch.tensor([[2.0, 2.0], [-1.0, 0.0]], dtype=D)
    now = at([[-0.5, -1.5], [-0.25, 0.0]])
    # Per rollout: -2 (-0.5 - 1.5) / 2 = 2 and 1 (-0.25) = -0.25; per decision: (1 + 3 - 0.25) / 3.
    assert Reinforce()(now, batch)[0].item() == pytest.approx((2 - 0.25) / 2)
    assert Reinforce(aggregate="decision")(now, batch)[0].item() == pytest.approx(3.75 / 3)
    # Dr.GRPO's constant length 4: (1 + 3 - 0.25) / (2 rollouts x 4).
    assert Reinforce(aggregate=4)(now, batch)[0].item() == pytest.approx(3.75 / 8)
    assert near(gradient(Reinforce(), now, batch), [[-0.5, -0.5], [0.5, 0]])


def clipped_batch(ratios: list[float], signs: list[float]) -> tuple[Evaluation, Batch]:
    batch = make_batch([0.0] * len(ratios))
    batch.advantages = torch.tensor(signs, dtype=D)[:, None]
    return at([[log(ratio)] for ratio in ratios]), batch


def test_ppo_clip_by_hand() -> None:
    now, batch = clipped_batch([1.5, 0.5, 1.1, 1.5], [1, -1, 1, -1])
    loss, metrics = PPOClip()(now, batch)
    # Gains: 1.2 (clipped), -0.8 (clipped), 1.1, and -1.5, which the minimum leaves unclipped.
    assert loss.item() == pytest.approx(-(1.2 - 0.8 + 1.1 - 1.5) / 4)
    assert metrics["objective/clip_fraction"] == 0.5
    assert metrics["objective/ratio_max"] == pytest.approx(1.5)
    k3 = [r - 1 - log(r) for r in (1.5, 0.5, 1.1, 1.5)]  # KL(old || new) on what the old sampled
    assert metrics["objective/kl"] == pytest.approx(sum(k3) / 4)
    assert near(gradient(PPOClip(), now, batch)[:, 0], [0, 0, -1.1 / 4, 1.5 / 4])


RATIO_FIELDS: list[tuple[Term, Term, tuple[str, ...]]] = [
    (PPOClip(), PPOClip(0.1), ("clip_low",)),
    (PPOClip(), PPOClip(3e-4, 4e-4, level="sequence"), ("clip_low", "clip_high", "level")),
    (PPOClip(), PPOClip(dual_clip=1.5, clip_high=0.01), ("clip_high", "dual_clip")),
    (PairwiseRegression(1.0), PairwiseRegression(1.0, clip=0.05), ("clip",)),
    (Reinforce(), Reinforce() + 0.5 * KLPenalty("proximal"), ("reference",)),
]


@pytest.mark.parametrize(("plain", "chosen", "names"), RATIO_FIELDS)
def test_fields_said_to_act_through_ratios_do_nothing_at_the_proximal_policy(
    plain: Term, chosen: Term, names: tuple[str, ...]
) -> None:
    """On the weights that the round began with the gradient is the plain one's; a step later it is another."""
    assert plain.off_policy_only == () and chosen.off_policy_only == names
    batch = make_batch([1.0, 0.0, 0.5, 0.0], lengths=[2, 1, 2, 2], reference=torch.full((4, 2), -1.0, dtype=D))
    batch.log_probs["proximal"] = torch.full((4, 2), -1.0, dtype=D)
    batch.pairs = torch.tensor([[0, 1], [2, 3]])
    batch.advantages = advantages.dr_grpo()(batch)
    here = at([[-1.0, -1.0]] * 4)
    assert near(gradient(plain, here, batch), gradient(chosen, here, batch), 1e-12)
    later = at([[-0.7, -0.7], [-1.2, 0.0], [-0.7, -0.9], [-1.25, -1.3]])
    assert not near(gradient(plain, later, batch), gradient(chosen, later, batch), 1e-3)


def test_one_decision_that_became_improbable_does_not_make_the_divergence_huge() -> None:
    now, batch = clipped_batch([1.0, exp(-12)], [1, -1])
    for objective in (PPOClip(), NFT()):
        assert objective(now, batch)[1]["objective/kl"] == pytest.approx((exp(-12) - 1 + 12) / 2, rel=1e-3)


def test_one_decision_that_became_far_more_probable_does_not_either() -> None:
    now, batch = clipped_batch([1.0, exp(13)], [1, -1])
    for objective in (PPOClip(), NFT()):
        assert objective(now, batch)[1]["objective/kl"] == pytest.approx((exp(3) - 1 - 3) / 2)


def test_clip_higher_and_own_clips() -> None:
    now, batch = clipped_batch([1.5, 1.5, 0.5, 0.5], [1, 1, -1, -1])
    assert PPOClip(clip_high=0.3)(now, batch)[0].item() == pytest.approx(-(1.3 + 1.3 - 0.8 - 0.8) / 4)
    batch.columns = {"clip_high": torch.tensor([0.1, 1.0, 0.1, 0.1]), "clip_low": torch.tensor([0.1, 0.1, 0.9, 0.4])}
    assert PPOClip()(now, batch)[0].item() == pytest.approx(-(1.1 + 1.5 - 0.5 - 0.6) / 4)


def test_dual_clip_bounds_negative_advantages() -> None:
    now, batch = clipped_batch([5.0, 2.0, 5.0], [-1, -1, 1])
    assert PPOClip(dual_clip=3.0)(now, batch)[0].item() == pytest.approx((3 + 2 - 1.2) / 3)
    assert near(gradient(PPOClip(dual_clip=3.0), now, batch)[:, 0], [0, 2 / 3, 0])
    with pytest.raises(ValueError, match="dual_clip must be above 1"):
        PPOClip(dual_clip=1.0)


def test_ratio_levels_by_hand() -> None:
    batch = make_batch([0, 0], lengths=[3, 2])
    batch.segments = torch.tensor([[0, 0, 1], [0, 0, 0]])
    batch.advantages = torch.ones(2, 3, dtype=D) * batch.mask
    now = at([[0.1, -0.3, 0.2], [0.05, 0.15, 9.0]])  # 9 is masked
    # Segments: means -0.1 (twice), 0.2; 0.1 (twice). Sequences: mean 0; 0.1.
    wide = {"clip_low": 1.0, "clip_high": 1.0}
    segment = ((2 * exp(-0.1) + exp(0.2)) / 3 + exp(0.1)) / 2
    assert PPOClip(level="segment", **wide)(now, batch)[0].item() == pytest.approx(-segment)
    assert PPOClip(level="sequence", **wide)(now, batch)[0].item() == pytest.approx(-(1 + exp(0.1)) / 2)
    # The sequence ratio s = exp(mean) pulls every decision alike: d(-s / 2) = -s / (2 x length).
    expected = [[-1 / 6] * 3, [-exp(0.1) / 4] * 2 + [0]]
    assert near(gradient(PPOClip(level="sequence", **wide), now, batch), expected)


def test_per_dimension_ratio() -> None:
    batch = make_batch([0], dims=4)
    batch.advantages = torch.ones(1, 1)
    assert PPOClip(clip_high=9)(at([[0.8]]), batch)[0].item() == pytest.approx(-exp(0.2))
    assert PPOClip(clip_high=9, per_dimension=False)(at([[0.8]]), batch)[0].item() == pytest.approx(-exp(0.8))


def test_proximal_is_the_clip_centre_and_behaviour_the_weight() -> None:
    batch = make_batch([0, 0], proximal=torch.tensor([[log(2.0)], [log(0.5)]], dtype=D))
    batch.advantages = torch.ones(2, 1)
    now = at([[log(2.0)], [log(0.5)]])
    assert PPOClip()(now, batch)[0].item() == pytest.approx(-1)
    # Weights 2, capped at 1.5, and 1/2.
    assert PPOClip(importance_cap=1.5)(now, batch)[0].item() == pytest.approx(-(1.5 + 0.5) / 2)


@pytest.mark.parametrize(("dims", "outside"), [(1, 0.0), (7, 0.13), (56, 0.59), (4096, 0.99)])
def test_a_summed_ratio_saturates_and_a_mean_does_not(dims: int, outside: float) -> None:
    """At 0.05 sigma of drift in every dimension."""
    samples, drift = 2000, 0.05
    x = torch.randn(samples, dims, generator=torch.Generator().manual_seed(dims))
    log_ratio = (-((x - drift) ** 2) / 2 + x**2 / 2).sum(-1, keepdim=True)
    batch = make_batch([0.0] * samples, dims=dims)
    for sign in (1.0, -1.0):  # the metric counts only clips that stop a gradient, hence both signs
        batch.advantages = torch.full((samples, 1), sign)
        summed = PPOClip(per_dimension=False)(at(log_ratio), batch)[1]["objective/clip_fraction"]
        outside -= summed
        assert PPOClip()(at(log_ratio), batch)[1]["objective/clip_fraction"] == 0
    assert abs(outside) < 0.03


@pytest.mark.parametrize(("toy", "tasks"), [(TokenToy, spelling_tasks()), (DenoiserToy, drawing_tasks())])
def test_ratio_is_one_before_the_first_update(toy: type, tasks: list) -> None:
    policy = toy(len(tasks))
    torch.nn.init.normal_(next(policy.module.parameters()), generator=torch.Generator().manual_seed(0))
    batch = policy.collate(policy.act(tasks, 4))
    batch.advantages = torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(1))
    now = policy.evaluate_actions(batch)
    assert torch.allclose(now.log_probs, batch.log_probs["behaviour"], atol=2e-6)
    metrics = PPOClip(clip_low=1e-4, clip_high=1e-4)(now, batch)[1]
    assert metrics["objective/clip_fraction"] == 0
    assert metrics["objective/ratio_max"] == pytest.approx(1, abs=1e-5)


# -------------------------------------------------------------------------------------------- regularisers


def test_kl_penalties_by_hand() -> None:
    batch = make_batch([0], reference=torch.tensor([[log(0.25)]], dtype=D))
    now = at([[log(0.5)]], kl={"reference": torch.tensor([[0.7]], dtype=D)})
    # pi / pi_ref = 2: k3 = 1/2 - 1 + ln 2, pulled along 1 - 1/2; k2 = (ln 2)^2 / 2, pulled along ln 2.
    assert KLPenalty()(now, batch)[0].item() == pytest.approx(0.5 - 1 + log(2))
    assert gradient(KLPenalty(), now, batch).item() == pytest.approx(0.5)
    assert KLPenalty(estimator="k2")(now, batch)[0].item() == pytest.approx(log(2) ** 2 / 2)
    assert gradient(KLPenalty(estimator="k2"), now, batch).item() == pytest.approx(log(2))
    exact = KLPenalty(estimator="exact")
    assert exact(now, batch)[0].item() == pytest.approx(0.7)
    assert now.gradient_of(exact(now, batch)[0]).kl["reference"].item() == 1
    assert exact.needs == {"kl:reference"} and KLPenalty("initial").needs == {"log_probs:initial"}
    halved = make_batch([0], dims=2, reference=batch.log_probs["reference"])
    assert exact(now, halved)[0].item() == pytest.approx(0.35)


def test_terms_add_up() -> None:
    batch = make_batch([0], reference=torch.tensor([[log(0.25)]], dtype=D))
    batch.advantages = torch.ones(1, 1)
    now = at([[log(0.5)]], entropy=torch.tensor([[3.0]], dtype=D))
    objective = Reinforce() + 0.1 * KLPenalty() - 0.01 * Entropy()
    loss, metrics = objective(now, batch)
    expected = log(2) + 0.1 * (log(2) - 0.5) - 0.01 * 3
    assert loss.item() == pytest.approx(expected)
    assert metrics["objective/entropy"] == 3 and "objective/kl_reference" in metrics
    assert objective.needs == {"advantages", "log_probs:reference", "entropy"}
    assert (2 * objective)(now, batch)[0].item() == pytest.approx(2 * expected)
    assert now.gradient_of(loss).entropy.item() == pytest.approx(-0.01)


# ------------------------------------------------------------------------------------- pairs, preferences


def paired(**log_probs: Tensor) -> Batch:
    return pairing.all_pairs(make_batch([1.0, 0.5], lengths=[2, 1], **log_probs))


def test_pairwise_regression_by_hand() -> None:
    batch = paired(reference=torch.tensor([[-1.0, -1.0], [-2.0, 0.0]], dtype=D))
    now = at([[-0.5, -0.7], [-1.9, 0.0]])
    # d = (0.5 + 0.3) - 0.1 = 0.7; (1 - 0.5) / beta = 1: (0.7 - 1)^2, gradient 2 (-0.3).
    assert PairwiseRegression(0.5)(now, batch)[0].item() == pytest.approx(0.09)
    assert near(gradient(PairwiseRegression(0.5), now, batch), [[-0.6, -0.6], [0.6, 0]])


def test_proximal_clip_of_prdp_by_hand() -> None:
    reference = torch.tensor([[-1.0, -1.0], [-2.0, 0.0]], dtype=D)
    batch = paired(reference=reference, behaviour=reference)
    now = at([[-0.5, -0.7], [-1.9, 0.0]])
    # Log-ratios 0.5, 0.3, 0.1 clipped to 0.2: d = 0.4 - 0.1 = 0.3, (0.3 - 1)^2 = 0.49 > 0.09.
    loss, metrics = PairwiseRegression(0.5, clip=0.2)(now, batch)
    assert loss.item() == pytest.approx(0.49)
    assert metrics["objective/clip_fraction"] == pytest.approx(2 / 3)
    # Only the unclipped decision, of the second rollout, feels it: -2 (0.3 - 1).
    assert near(gradient(PairwiseRegression(0.5, clip=0.2), now, batch), [[0, 0], [1.4, 0]])
    # The unclipped square wins when it is the larger: beta = 5/3, target 0.3.
    assert PairwiseRegression(5 / 3, clip=0.2)(now, batch)[0].item() == pytest.approx(0.16)
    with pytest.raises(ValueError, match="beta must be positive"):
        PairwiseRegression(0.0)


def test_pairwise_regression_is_copg_and_prdp_and_ipo() -> None:
    random = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(5, 3, generator=random, dtype=D)  # noqa: E731
    returns = torch.randn(5, generator=random).tolist()
    batch = pairing.all_pairs(make_batch(returns, lengths=[3, 2, 3, 1, 3], reference=draw(), behaviour=draw()))
    now, beta = at(draw()), 0.7
    ours = gradient(PairwiseRegression(beta), now, batch)

    # CoPG (arXiv 2406.19185): maximise, per pair, (Delta r - beta d) (grad ln pi(a) - grad ln pi(b)).
    score = ((now.log_probs - batch.log_probs["reference"]) * batch.mask).sum(-1).detach()
    copg = torch.zeros_like(ours)
    for a, b in batch.pairs.tolist():
        pull = returns[a] - returns[b] - beta * (score[a] - score[b])
        copg[a] -= pull * batch.mask[a]
        copg[b] += pull * batch.mask[b]
    assert near(beta / 2 * ours, copg / len(batch.pairs), 1e-12)
    # PRDP with a clip that nothing reaches.
    assert near(gradient(PairwiseRegression(beta, clip=1e3), now, batch), ours, 1e-12)

    # IPO (arXiv 2310.12036): (d - 1 / (2 tau))^2 for a winner against a loser.
    tau = 0.3
    preferred = pairing.best_worst(
        make_batch([1, 0, 0, 1], [[0, 1], [2, 3]], lengths=[3] * 4, reference=batch.log_probs["reference"][:4])
    )
    score = (now.log_probs[:4] - preferred.log_probs["reference"]).sum(-1)
    ipo = ((score[0] - score[1] - 1 / (2 * tau)) ** 2 + (score[3] - score[2] - 1 / (2 * tau)) ** 2) / 2
    assert PairwiseRegression(2 * tau)(at(now.log_probs[:4]), preferred)[0].item() == pytest.approx(ipo.item())


def test_dpo_by_hand() -> None:
    batch = replace(paired(reference=torch.zeros(2, 2, dtype=D)), labels=None)
    now = at([[1.5, 1.0], [0.5, 7.0]])  # d = 2; 7 is masked
    assert DPO(0.5)(now, batch)[0].item() == pytest.approx(log(1 + exp(-1)))
    soft = replace(batch, labels=torch.tensor([0.75]))
    loss, metrics = DPO(0.5)(now, soft)
    assert loss.item() == pytest.approx(0.75 * log(1 + exp(-1)) + 0.25 * log(1 + exp(1)))
    assert metrics["objective/accuracy"] == 1 and metrics["objective/margin"] == pytest.approx(1)
    # Gradient of the margin: sigma(1) - 3/4, times beta.
    pull = 0.5 * (1 / (1 + exp(-1)) - 0.75)
    assert near(gradient(DPO(0.5), now, soft), [[pull, pull], [-pull, 0]])


def test_dpo_of_decisions_by_hand() -> None:
    """Two pairs of unequal length, beta 0.5: margins 0.5 where the first both decide, then -0.2, 0.4."""
    batch = make_batch([1, 0, 1, 0], lengths=[2, 1, 3, 2], start=torch.full((4, 3), -1.0, dtype=D))
    batch = replace(batch, pairs=torch.tensor([[0, 1], [2, 3]]))
    now = at([[0.5, 0.0, 5.0], [-0.5, 6.0, 5.0], [-0.8, -0.6, 8.0], [-0.4, -1.4, 6.0]])
    objective = DPO(0.5, "start", level="decision")
    loss, metrics = objective(now, batch)
    second = (log(1 + exp(0.2)) + log(1 + exp(-0.4))) / 2
    assert loss.item() == pytest.approx((log(1 + exp(-0.5)) + second) / 2)
    assert metrics["objective/margin"] == pytest.approx((0.5 + 0.1) / 2) and metrics["objective/accuracy"] == 1
    # d loss / d margin = -sigma(-margin), halved by the pairs and, in the second, by its two places.
    a, c0, c1 = (-0.5 / (1 + exp(m)) / n for m, n in ((0.5, 2), (-0.2, 4), (0.4, 4)))
    assert near(gradient(objective, now, batch), [[a, 0, 0], [-a, 0, 0], [c0, c1, 0], [-c0, -c1, 0]])
    soft = replace(batch, labels=torch.tensor([0.25, 1.0]))
    uncertain = 0.25 * log(1 + exp(-0.5)) + 0.75 * log(1 + exp(0.5))
    assert objective(now, soft)[0].item() == pytest.approx((uncertain + second) / 2)
    assert objective(now, soft)[1]["objective/accuracy"] == 0.5, "the first is likelier, and more often the worse one"


def test_dpo_of_decisions_without_a_common_place_says_nothing() -> None:
    batch = paired(reference=torch.zeros(2, 2, dtype=D))
    batch = replace(batch, mask=torch.tensor([[False, True], [True, False]]))
    now, objective = at([[1.5, 1.0], [0.5, 7.0]]), DPO(0.5, level="decision")
    assert objective(now, batch)[0].item() == 0
    assert gradient(objective, now, batch).abs().max() == 0


def test_dpo_of_one_decision_is_the_same_at_both_levels() -> None:
    batch = pairing.all_pairs(make_batch([1, 0, 0.5], reference=torch.full((3, 1), 0.3, dtype=D)))
    now = at([[0.1], [0.7], [-0.4]])
    both = [gradient(DPO(0.7, level=level), now, batch) for level in ("sequence", "decision")]
    assert torch.equal(*both) and both[0].abs().min() > 0


def test_missing_pairs_or_advantages_are_named() -> None:
    batch = make_batch([1, 0], reference=torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"batch\.pairs is empty"):
        DPO()(at([[0.0], [0.0]]), batch)
    with pytest.raises(ValueError, match=r"batch\.advantages is empty"):
        PPOClip()(at([[0.0], [0.0]]), batch)


# ------------------------------------------------------------------------------------------ NFT, imitation


def test_nft_by_hand() -> None:
    batch = make_batch([1, 0, 0, 0])
    now = at([[log(1.1)], [log(2.0)], [log(0.5)], [0.0]])
    # r = 1/4. Right: ln 1.1. Wrong: (1 - 2/4) / (3/4) = 2/3, floored to 1; (1 - 1/8) / (3/4) = 7/6; 1.
    omega = 0.75
    loss, metrics = NFT()(now, batch)
    assert loss.item() == pytest.approx(-omega * (log(1.1) + log(7 / 6)) / 4)
    assert metrics["objective/floor_fraction"] == pytest.approx(1 / 3)
    # Straight through the floor: -r R / (1 - r) over max(implied, 1).
    pulls = [1, -(0.25 * 2 / 0.75), -(0.25 * 0.5 / 0.75) / (7 / 6), -1 / 3]
    assert near(gradient(NFT(), now, batch)[:, 0], [-omega * pull / 4 for pull in pulls])
    assert near(gradient(NFT(negatives=0.0), now, batch)[:, 0], [-omega / 4, 0, 0, 0])
    # log R is capped at 10, and a group that is all right teaches nothing.
    assert NFT("none")(at([[12.0], [0.0], [0.0], [0.0]]), batch)[0].item() == pytest.approx(-10 / 4)
    assert gradient(NFT(), now, make_batch([1, 1, 1, 1])).abs().max() == 0
    # Without a return it is neither right nor wrong: r = 1/2 of the other two.
    absent = gradient(NFT(), at([[0.0]] * 3), make_batch([1, 0, float("nan")]))
    assert near(absent[:, 0], [-0.5 / 3, 0.5 / 3, 0])


@pytest.mark.parametrize("wins", [1, 3, 6])
def test_nft_on_policy_is_grpo_and_dr_grpo(wins: int) -> None:
    size = 8
    batch = make_batch([1.0] * wins + [0.0] * (size - wins), lengths=[3, 1, 2, 3, 3, 2, 1, 3])
    now = at(torch.zeros(size, 3))
    batch.advantages = advantages.dr_grpo()(batch)
    assert near(gradient(NFT("pass_rate"), now, batch), gradient(PPOClip(), now, batch), 1e-9)
    # NFT's omega holds the biased standard deviation; GroupRelative's is the unbiased one.
    batch.advantages = advantages.GroupRelative(eps=0.0)(batch) * (size / (size - 1)) ** 0.5
    assert near(gradient(NFT("std"), now, batch), gradient(PPOClip(), now, batch), 1e-9)


def test_forward_nft_is_the_diffusion_nft_loss() -> None:
    random = torch.Generator().manual_seed(0)
    rows, decisions, dims, beta = 4, 3, 5, 0.6
    v, v_old, theta = (torch.randn(rows, decisions, dims, generator=random, dtype=D) for _ in range(3))
    theta.requires_grad_()
    batch = make_batch([0.0] * rows, lengths=[decisions] * rows, dims=dims)
    r = torch.rand(rows, generator=random, dtype=D)
    batch.columns = {"optimality": r}

    def published(theta: Tensor) -> Tensor:
        positive = ((1 - beta) * v_old + beta * theta - v).square().sum(-1)
        negative = ((1 + beta) * v_old - beta * theta - v).square().sum(-1)
        return (r[:, None] * positive + (1 - r[:, None]) * negative).mean()

    score, kl = -(v - theta).square().sum(-1) / 2, (theta - v_old).square().sum(-1) / 2
    now = Evaluation(score, kl={"proximal": kl}).leaves()
    loss, _ = ForwardNFT(beta, per_dimension=False)(now, batch)
    # The constant: (1 - beta (2 r - 1)) |v_old - v|^2.
    constant = ((1 - beta * (2 * r[:, None] - 1)) * (v_old - v).square().sum(-1)).mean()
    assert (loss + constant).item() == pytest.approx(published(theta).item(), abs=1e-12)

    cotangents = now.gradient_of(loss)
    through = torch.autograd.grad([score, kl], theta, [cotangents.log_probs, cotangents.kl["proximal"]])[0]
    assert near(through, torch.autograd.grad(published(theta), theta)[0], 1e-12)
    assert ForwardNFT(beta)(now, batch)[0].item() == pytest.approx(loss.item() / dims)


def test_weighted_imitation_by_hand() -> None:
    batch = make_batch([0, 0], lengths=[2, 1])
    now = at([[-1.0, -2.0], [-4.0, 0.0]])
    assert WeightedImitation()(now, batch)[0].item() == pytest.approx((1.5 + 4) / 2)
    batch.columns = {"weight": torch.tensor([2.0, 0.5])}
    assert WeightedImitation()(now, batch)[0].item() == pytest.approx((2 * 1.5 + 0.5 * 4) / 2)
    assert WeightedImitation(aggregate="decision")(now, batch)[0].item() == pytest.approx((2 * 3 + 0.5 * 4) / 3)
    assert WeightedImitation(decisions="forward").needs == {"forward"} and not WeightedImitation().needs


# ---------------------------------------------------------------------------------- what holds for them all

ALL: list[Term] = [
    Reinforce(),
    PPOClip(),
    PPOClip(level="segment", aggregate="decision", dual_clip=2.0),
    PPOClip(level="sequence", aggregate=7),
    PPOClip(importance_cap=2.0),
    KLPenalty(),
    KLPenalty(estimator="exact", aggregate="decision"),
    Entropy(),
    PairwiseRegression(0.5),
    PairwiseRegression(0.5, clip=0.1),
    DPO(),
    DPO(level="decision"),
    NFT(),
    NFT("std", aggregate="decision"),
    ForwardNFT(),
    WeightedImitation(),
    PPOClip() + 0.1 * KLPenalty() - 0.01 * Entropy(),
]


def anything() -> tuple[Evaluation, Batch]:
    """Two groups of three, padded, with every column an objective may ask for."""
    random = torch.Generator().manual_seed(3)
    draw = lambda: torch.randn(6, 4, generator=random, dtype=D) / 5  # noqa: E731
    batch = make_batch(
        [1, 0, 0, 0, 1, 1],
        [[0, 1, 2], [3, 4, 5]],
        lengths=[4, 2, 3, 1, 4, 4],
        dims=2,
        behaviour=draw(),
        proximal=draw(),
        reference=draw(),
    )
    batch.segments = torch.tensor([0, 0, 1, 1]).expand(6, 4)
    batch.rewards["total"] = torch.cat([torch.full((6, 1), torch.nan, dtype=D), batch.rewards["total"]], 1)
    batch.columns = {"weight": torch.rand(6, generator=random)}
    batch.advantages = advantages.grpo()(batch)
    now = at(draw(), entropy=draw(), kl={"proximal": draw() ** 2, "reference": draw() ** 2})
    return now, pairing.preference_pairs(batch)


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_masked_decisions_get_no_gradient(objective: Term) -> None:
    now, batch = anything()
    for name, cotangent in now.gradient_of(objective(now, batch)[0]).tensors().items():
        assert cotangent[~batch.mask].abs().max() == 0, name
        assert cotangent.isfinite().all(), name


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_two_processes_sum_to_one(objective: Term) -> None:
    """Half of the groups each, divided by the counts of all, add up to the whole gradient."""
    now, batch = anything()
    whole = now.gradient_of(objective(now, batch)[0])
    for rows in (torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5])):
        half = replace(batch.select(rows), totals=batch.counts())
        mine = now.map(lambda _, tensor, rows=rows: tensor[rows]).leaves()
        for name, cotangent in mine.gradient_of(objective(mine, half)[0]).tensors().items():
            assert near(cotangent, whole.tensors()[name][rows], 1e-12), name


def test_missing_capabilities_are_refused_by_name() -> None:
    policy = DenoiserToy(4)
    with pytest.raises(ValueError, match=r"entropy.*DenoiserToy"):
        PolicyLearner(policy, PPOClip() - 0.01 * Entropy(), Optimisation(), advantage=advantages.grpo())
