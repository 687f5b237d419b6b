"""Released losses and statistics of diffusion models, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from math import exp, log

import pytest
import torch

from autotelic.trainers import advantages, pairing
from autotelic.trainers.objectives import DPO, KLPenalty

from .test_objectives import D, at, gradient, make_batch, near


def test_advantages_by_the_deviation_of_all() -> None:
    """As TRL's scale_rewards "batch": groups 1, 3 and 2, 6 have variances 2 and 8, all four 14 / 3."""
    batch = make_batch([1, 3, 2, 6], [[0, 1], [2, 3]])
    std = (14 / 3) ** 0.5
    scaled = advantages.GroupRelative("batch")
    assert near(scaled(batch)[:, 0], [-1 / std, 1 / std, -2 / std, 2 / std], 1e-5)
    assert near(replace(scaled, clip_max=0.5)(batch)[:, 0], [-1 / std, 1 / std, -0.5, 0.5], 1e-5)
    assert near(replace(scaled, std_floor=4.0)(batch)[:, 0], [-0.25, 0.25, -0.5, 0.5], 1e-5)
    unknown = make_batch([1, 3, torch.nan, 6, 2], [[0, 1], [2, 3, 4]])
    assert near(scaled(unknown)[:, 0], [-1 / std, 1 / std, 0, 2 / std, -2 / std], 1e-5)
    assert scaled(make_batch([2, 2, 2], [[0, 1, 2]])).abs().max() == 0


def test_optimality_of_advantages() -> None:
    batch = make_batch([0, 0, 0], lengths=[2, 1, 1])
    batch.advantages = torch.tensor([[1.0, 1.0], [-7.0, 0.0], [0.0, 0.0]], dtype=D)
    assert near(pairing.optimality_of_advantages(batch).columns["optimality"], [0.6, 0.0, 0.5])
    assert near(pairing.optimality_of_advantages(batch, 2.0).columns["optimality"], [0.75, 0.0, 0.5])
    with pytest.raises(ValueError, match=r"batch\.advantages is empty"):
        pairing.optimality_of_advantages(make_batch([0, 1]))


def test_diffusion_dpo_by_hand() -> None:
    """The paper's loss of one pair at two levels, from predictions of four scalars each, beta 8.

    Errors are means over scalars. Level one: the better picture's falls from 1 to .5, the worse one's stays at .25;
    level two: they rise by .125 and by .25. -beta / 2 (.5 - 1 - 0) = 2, and -4 (.125 - .25) = .5.
    """
    errors = torch.tensor([[0.5, 1.125], [0.25, 0.75]], dtype=D)
    before = torch.tensor([[1.0, 1.0], [0.25, 0.5]], dtype=D)
    batch = make_batch([1, 0], lengths=[2, 2], dims=4, start=-4 * before / 2)  # l = -|error|^2 / 2, a sum
    objective = DPO(8.0, "start", decisions="forward", level="decision", per_dimension=True)
    batch, now = pairing.best_worst(batch), at(-4 * errors / 2)
    loss, metrics = objective(now, batch)
    assert loss.item() == pytest.approx((log(1 + exp(-2)) + log(1 + exp(-0.5))) / 2), "the mean is outside the sigmoid"
    assert loss.item() != pytest.approx(log(1 + exp(-1.25)), abs=1e-3)
    assert metrics["objective/margin"] == pytest.approx(1.25)
    pulls = [-8 / 4 / 2 / (1 + exp(m)) for m in (2, 0.5)]
    assert near(gradient(objective, now, batch), [pulls, [-p for p in pulls]])


def test_d3po_clamps_the_ratio_of_a_step() -> None:
    """Two scalars per step: means .05 and -.3 against -.02 and .2; clamped to log 1.1 and log .9, beta .1."""
    batch = make_batch([1, 0], lengths=[2, 2], dims=2, start=torch.zeros(2, 2, dtype=D))
    batch, now = pairing.best_worst(batch), at([[0.1, -0.6], [-0.04, 0.4]])
    objective = DPO(0.1, "start", level="decision", per_dimension=True, ratio_clip=0.1)
    loss, metrics = objective(now, batch)
    margins = 0.1 * (0.05 + 0.02), 0.1 * (log(0.9) - log(1.1))
    assert loss.item() == pytest.approx(sum(log(1 + exp(-m)) for m in margins) / 2)
    assert metrics["objective/clip_fraction"] == 0.5
    pull = -0.1 / 2 / 2 / (1 + exp(margins[0]))
    assert near(gradient(objective, now, batch), [[pull, 0], [-pull, 0]]), "what is clamped has no gradient"
    whole = gradient(replace(objective, ratio_clip=None), now, batch)
    assert whole[:, 1].abs().min() > 0.01


def test_kl_weighed_by_place() -> None:
    """Flow-GRPO's code weighs the KL of a step by the step's length: two rollouts, two scalars, one place masked."""
    batch = make_batch([1, 0], lengths=[2, 1], dims=2)
    now = at([[0.0, 0.0], [0.0, 0.0]], kl={"start": torch.tensor([[0.4, 0.8], [1.2, 9.0]], dtype=D)})
    plain = KLPenalty("start", "exact")
    weighed = replace(plain, weights=(0.5, 0.25))
    assert plain(now, batch)[0].item() == pytest.approx(((0.2 + 0.4) / 2 + 0.6) / 2)
    assert weighed(now, batch)[0].item() == pytest.approx(((0.1 + 0.1) / 2 + 0.3) / 2)
    assert weighed(now, batch)[1] == plain(now, batch)[1], "what is reported is the divergence itself"
