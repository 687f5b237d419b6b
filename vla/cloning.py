"""Behaviour cloning: the start that self-improvement sets out from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..fitting import cosine, fit
from ..trainers.randomness import generator
from ..types import Rollout
from .chunk_policy import ChunkPolicy, Seen, frames_in, is_own
from .vision import shifted


@dataclass(frozen=True)
class Cloning:
    """Attributes:
    steps, batch: gradient steps of AdamW, chunks per step.
    lr: peak learning rate, decayed by a cosine to zero.
    weight_decay: AdamW's.
    shift: frames are moved by up to this many pixels per axis, at random.
    """

    steps: int = 1500
    batch: int = 256
    lr: float = 1e-3
    weight_decay: float = 1e-4
    shift: int = 4
    seed: int = 0


def clone(policy: ChunkPolicy, rollouts: Sequence[Rollout], cloning: Cloning) -> float:
    """Fit the policy to encoded demonstrations, every environment counting the same.

    Sets the policy's input normalisation first. A batch larger than what the policy holds at once is imitated in
    pieces, each counting by the steps that it shows. Returns the last loss per decision.
    """
    names = rollouts[0].payload
    data = {name: torch.cat([r.payload[name] for r in rollouts]) for name in names if not is_own(name)}
    states = torch.cat([r.payload["states"] for r in rollouts])
    executed = torch.cat([r.payload["executed"] for r in rollouts])
    frames = {c: torch.cat([frames_in(r.payload)[c] for r in rollouts]) for c in frames_in(names)}
    instructions = [str(r.task.prompt) for r in rollouts for _ in r.payload["states"]]
    weights = _weights(rollouts)
    policy.normalise(states)
    random, device = generator("cloning", cloning.seed), policy.device

    def loss(_: int) -> Iterator[Tensor]:
        rows = torch.multinomial(weights, cloning.batch, replacement=True, generator=random)
        pictures = {camera: film[rows] for camera, film in frames.items()}
        if cloning.shift:
            pictures = {camera: shifted(film, cloning.shift, random) for camera, film in pictures.items()}
        stored = {name: values[rows] for name, values in data.items()}
        if policy.demonstrations == "forward":
            stored = dict(policy.redraw(stored, random))
        stored["temperature"], stored["executed"] = torch.ones(len(rows)), executed[rows]
        seen = Seen([instructions[row] for row in rows.tolist()], states[rows], pictures)
        shown = int(stored["executed"].sum())
        for piece in torch.split(torch.arange(len(rows)), policy.micro_batch_rows):
            some = {name: values[piece].to(device) for name, values in stored.items()}
            share = 1.0 if len(piece) == len(rows) else int(some["executed"].sum()) / shown
            with policy.mixed():
                here = seen.select(piece).to(device, frames=not policy.frames_stay)
                yield share * policy.imitation_loss(here, some)

    rates = cosine(cloning.lr, cloning.steps)
    told = "cloning the policy from demonstrations"
    return fit(policy.parameters(), loss, rates, weight_decay=cloning.weight_decay, max_grad_norm=1.0, told=told)


def _weights(rollouts: Sequence[Rollout]) -> Tensor:
    """The probability of every chunk, up to a factor: each category's chunks sum to the same."""
    categories = [r.task.category for r in rollouts]
    share = [1.0 / (categories.count(r.task.category) * len(r.payload["states"])) for r in rollouts]
    return torch.cat([torch.full((len(r.payload["states"]),), s) for r, s in zip(rollouts, share, strict=True)])
