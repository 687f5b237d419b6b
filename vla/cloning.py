"""Behaviour cloning: the start that self-improvement sets out from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..trainers.randomness import generator
from ..types import Rollout
from .policy import ActionModel, ActionPolicy, word_rows


@dataclass(frozen=True)
class Cloning:
    """Attributes:
    steps, batch: gradient steps of AdamW, chunks per step.
    lr: peak learning rate, decayed by a cosine to zero.
    smoothing: width in bins of the Gaussian that replaces a token's one-hot target (neighbouring
        bins are almost the same action).
    weight_decay: AdamW's.
    """

    steps: int = 1500
    batch: int = 256
    lr: float = 1e-3
    smoothing: float = 0.7
    weight_decay: float = 1e-4
    seed: int = 0


def clone(policy: ActionPolicy, rollouts: Sequence[Rollout], cloning: Cloning) -> float:
    """Fit the policy to encoded demonstrations, every environment counting the same.

    Sets the model's input normalisation first. Returns the last loss per decision.
    """
    model = policy.model
    observations = torch.cat([r.payload["states"] for r in rollouts])
    targets = torch.cat([r.payload["actions"] for r in rollouts])
    words = word_rows([str(r.task.prompt) for r in rollouts for _ in r.payload["actions"]], model.buckets)
    categories = [r.task.category for r in rollouts]
    share = [1.0 / (categories.count(r.task.category) * len(r.payload["actions"])) for r in rollouts]
    weights = torch.cat([torch.full((len(r.payload["actions"]),), s) for r, s in zip(rollouts, share, strict=True)])
    model.normalise_by(observations)
    optimizer = torch.optim.AdamW(model.parameters(), lr=cloning.lr, weight_decay=cloning.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, cloning.steps)
    random = generator("cloning", cloning.seed)
    loss = torch.zeros(())
    for _ in range(cloning.steps):
        rows = torch.multinomial(weights, cloning.batch, replacement=True, generator=random)
        loss = _loss(model, observations[rows], words[rows], targets[rows], cloning.smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return float(loss.detach())


def _loss(model: ActionModel, observations: Tensor, words: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    device = model.mean.device
    out, targets = model(observations.to(device), words.to(device)), targets.to(device)
    if model.head == "gaussian":
        return torch.nn.functional.mse_loss(out, targets)  # the spread is for exploring, not for copying an expert
    bins = torch.arange(model.bins, device=device)
    wanted = (-0.5 * ((bins - targets[..., None]) / smoothing) ** 2).softmax(-1)
    loss: Tensor = -(wanted * out.log_softmax(-1)).sum(-1).mean()
    return loss
