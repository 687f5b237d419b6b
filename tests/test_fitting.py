"""The fit of small networks against torch's own optimiser and schedule, step by step."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from autotelic.fitting import cosine, fit


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1))


def loss_of(model: nn.Module, seed: int) -> torch.Tensor:
    inputs = torch.randn(16, 3, generator=torch.Generator().manual_seed(seed))
    return (100 * (model(inputs)[:, 0] - inputs.prod(-1)) ** 2).mean()


@pytest.mark.parametrize("clip", [None, 0.5])
def test_weights_are_to_the_bit_those_of_torchs_own_loop(clip: float | None) -> None:
    ours, theirs = network(), network()
    last = fit(ours, lambda step: loss_of(ours, step), cosine(0.02, 25), weight_decay=0.01, max_grad_norm=clip)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=0.02, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 25)
    loss = torch.zeros(())
    for step in range(25):
        loss = loss_of(theirs, step)
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(theirs.parameters(), clip)
        optimizer.step()
        schedule.step()
    assert last == loss.item()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_the_cosine_falls_from_the_rate_towards_zero() -> None:
    rates = cosine(0.4, 4)
    assert rates == pytest.approx([0.4, 0.2 * (1 + math.sqrt(0.5)), 0.2, 0.2 * (1 - math.sqrt(0.5))])
    assert cosine(0.4, 0) == []


def test_only_the_given_parameters_move_and_every_step_is_told() -> None:
    model, steps = network(), []
    before = [p.detach().clone() for p in model.parameters()]
    fit(model[0].parameters(), lambda step: loss_of(model, step), [0.1] * 3, after=steps.append)  # type: ignore[index]
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert moved == [True, True, False, False] and steps == [0, 1, 2]


def test_no_steps_change_nothing() -> None:
    model = network()
    assert math.isnan(fit(model, lambda step: loss_of(model, step), []))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), network().parameters(), strict=True))
