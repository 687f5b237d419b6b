"""Continuations of a given beginning by a token policy: the sampler of Monte Carlo process rewards."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..numbers import rows_by_key
from ..trainers.randomness import generator
from ..types import Task
from .decoding import decode
from .policy import TokenPolicy


class Continuation:
    """Goes on from the beginning of an answer, as :class:`~..rewards.steps.MonteCarlo` asks its sampler.

    Random numbers depend on task, beginning and sample alone.

    Args:
        policy: who goes on; within its ``horizon``, or the task's, of which the beginning takes its part.
        live: the policy itself; otherwise a copy, frozen as it is now (a policy with nothing to train is one already).
        temperature: of sampling.
        name: of the policy in ``families``, "policy:NAME".
    """

    def __init__(
        self, policy: TokenPolicy, *, live: bool = False, temperature: float = 1.0, name: str = "self"
    ) -> None:
        self.policy, self.temperature = judging(policy, live, name), temperature
        self.families = frozenset({f"policy:{name}"})

    def __call__(self, tasks: Sequence[Task], beginnings: Sequence[str], n: int) -> list[list[str]]:
        """n texts for each task, without their beginning; empty where no token is left."""
        tokens = [self.policy.renderer.tokens(text)[:-1] for text in beginnings]  # without the end
        texts: list[list[str]] = [[] for _ in tasks]
        with self.policy.inference():
            for rows in rows_by_key(len(some) for some in tokens).values():  # nothing to pad
                for places, _, samples in self.policy.together([tasks[row] for row in rows], n):
                    some = [rows[place] for place in places]
                    given = torch.stack([tokens[row] for row in some])
                    told = [tasks[row] for row in some], [beginnings[row] for row in some]
                    for row, part in zip(some, self._continued(*told, given, samples), strict=True):
                        texts[row] += part
        return texts

    def _continued(
        self, tasks: Sequence[Task], beginnings: Sequence[str], given: Tensor, samples: range
    ) -> list[list[str]]:
        """Of beginnings [B, C] of one length."""
        n = len(samples)
        policy, width = self.policy, given.shape[1]
        limits = torch.tensor([max(0, (task.horizon or policy.horizon) - width) for task in tasks])
        if not int(limits.max()):
            return [[""] * n for _ in tasks]
        hidden, state = policy.backbone.read(policy.renderer.prompts(tasks))
        if width:
            given = given.to(hidden.device)
            later, state = policy.backbone.read_on(state, given, torch.ones_like(given, dtype=torch.bool))
            hidden = later[:, -1]
        index = torch.arange(len(tasks) * n) // n
        noise = torch.stack(
            [
                torch.rand(int(limits.max()), generator=generator("continuation", task.id, beginning, sample))
                for task, beginning in zip(tasks, beginnings, strict=True)
                for sample in samples
            ]
        )
        hidden, state = hidden[index.to(hidden.device)], policy.backbone.rows(state, index)
        tokens, _, lengths = decode(policy, hidden, state, limits[index].clamp(min=1), noise, self.temperature)
        texts = [
            policy.renderer.text(row[:length]) if limit else ""
            for row, length, limit in zip(tokens, lengths.tolist(), limits[index].tolist(), strict=True)
        ]
        return [texts[first : first + n] for first in range(0, len(texts), n)]


def judging(policy: TokenPolicy, live: bool, name: str) -> TokenPolicy:
    """The policy itself where it is live or has nothing to train, else a copy, frozen as it is now."""
    frozen = next(iter(policy.parameters()), None) is None
    return policy if live or frozen else policy.fork(name)
