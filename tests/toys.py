"""Two toy policies that stand for the modalities: one writes tokens, one denoises points.

Nothing in the core knows them. They train in seconds on one core.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from autotelic.trainers.policy import TorchPolicy
from autotelic.trainers.randomness import generator
from autotelic.types import Batch, Decisions, Evaluation, Rollout, Task


class TokenToy(TorchPolicy):
    """Spells: an autoregressive table of logits by (task, position, previous token).

    A task's prompt is its number, its horizon the length to spell, its reference the right tokens. A decision is a
    token, the whole answer one segment.
    """

    VOCABULARY = 4
    LENGTH = 3
    capabilities = frozenset({"exact", "entropy", "kl"})

    def __init__(self, tasks: int) -> None:
        super().__init__(nn.Embedding(tasks * self.LENGTH * (self.VOCABULARY + 1), self.VOCABULARY))
        nn.init.zeros_(self.module.weight)

    def logits(self, task: Tensor, position: Tensor, previous: Tensor) -> Tensor:
        """[..., V] normalised; previous is V at the start."""
        row = (task * self.LENGTH + position) * (self.VOCABULARY + 1) + previous
        return self.module(row).log_softmax(-1)

    @torch.no_grad()
    def act(
        self, tasks: Sequence[Task], n: int, *, key: tuple[int, ...] = (0,), mode: str = "train", **_: Any
    ) -> list[Rollout]:
        pairs = [(task, sample) for task in tasks for sample in range(n)]
        noise = torch.stack([torch.rand(self.LENGTH, generator=generator(*key, t.id, s)) for t, s in pairs])
        number = torch.tensor([task.prompt for task, _ in pairs])
        previous = torch.full_like(number, self.VOCABULARY)
        tokens, log_probs = [], []
        for position in range(self.LENGTH):
            logits = self.logits(number, torch.full_like(number, position), previous)
            passed = logits.exp().cumsum(-1) < noise[:, position, None]
            previous = passed.sum(-1).clamp(max=self.VOCABULARY - 1)
            tokens.append(previous)
            log_probs.append(logits.gather(-1, previous[:, None])[:, 0])
        return [
            self._rollout(task, answer[: task.horizon], scores[: task.horizon])
            for (task, _), answer, scores in zip(pairs, torch.stack(tokens, 1), torch.stack(log_probs, 1), strict=True)
        ]

    def encode(self, tasks: Sequence[Task], outputs: Sequence[Any]) -> list[Rollout]:
        return [self._rollout(task, torch.tensor(answer), None) for task, answer in zip(tasks, outputs, strict=True)]

    def _rollout(self, task: Task, answer: Tensor, log_probs: Tensor | None) -> Rollout:
        payload = {"task": torch.tensor([task.prompt]), "tokens": answer}
        mask = torch.ones_like(answer, dtype=torch.bool)
        return Rollout(task, tuple(answer.tolist()), payload, log_probs, mask, torch.zeros_like(answer))

    def forward_decisions(self, batch: Batch, needs: frozenset[str], references: Mapping[str, Any]) -> Evaluation:
        task, tokens = batch.payload["task"], batch.payload["tokens"]
        start = torch.full_like(task, self.VOCABULARY)
        previous = torch.cat([start, tokens[:, :-1]], 1)
        where = (task, torch.arange(tokens.shape[1]), previous)
        logits = self.logits(*where)
        now = Evaluation(logits.gather(-1, tokens[..., None])[..., 0] * batch.mask)
        if "entropy" in needs:
            now.entropy = -(logits.exp() * logits).sum(-1) * batch.mask
        for name in _policies(needs):
            with torch.no_grad():
                other = references[name].logits(*where)
            now.kl[name] = (logits.exp() * (logits - other)).sum(-1) * batch.mask
        return now


class DenoiserToy(TorchPolicy):
    """Draws points: a rectified flow in the plane with noise in every step, x' = x - v / T + sigma eps.

    A task's prompt is its number, its reference the point to hit. Sampled decisions are the T denoising steps, each
    its own segment of two scalars. Forward decisions are T draws of (t, eps), made once with the rollout, with score
    -|v - v_theta|^2 / 2 at x_t = (1 - t) x_0 + t eps, v = eps - x_0.
    """

    STEPS = 4
    SIGMA = 0.25
    capabilities = frozenset({"exact", "kl", "forward", "outputs"})

    def __init__(self, tasks: int, seed: int = 0) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            layers = nn.Linear(3 + tasks, 32), nn.Tanh(), nn.Linear(32, 2)
        nn.init.zeros_(layers[-1].weight)
        super().__init__(nn.Sequential(*layers))
        self.tasks = tasks

    def decision_dims(self, rollout: Rollout) -> int:
        return 2

    def velocity(self, task: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """v_theta [..., 2] at points x [..., 2] and times t [..., 1]; task [...] long."""
        one_hot = nn.functional.one_hot(task, self.tasks).to(x)
        return self.module(torch.cat([x, t, one_hot], -1))

    def _times(self, x: Tensor) -> Tensor:
        """[T, 1] time at the start of each step, from 1 down to 1 / T."""
        return torch.linspace(1, 1 / self.STEPS, self.STEPS).to(x)[:, None]

    @torch.no_grad()
    def act(
        self, tasks: Sequence[Task], n: int, *, key: tuple[int, ...] = (0,), mode: str = "train", **_: Any
    ) -> list[Rollout]:
        pairs = [(task, sample) for task in tasks for sample in range(n)]
        draws = [generator(*key, task.id, sample) for task, sample in pairs]
        noise = torch.stack([torch.randn(self.STEPS + 1, 2, generator=draw) for draw in draws])
        path = self._denoise(torch.tensor([task.prompt for task, _ in pairs]), noise)
        log_probs = self._gaussian(noise[:, 1:] * self.SIGMA)
        return [
            self._rollout(task, draw, noise[row], path[row], log_probs[row])
            for row, ((task, _), draw) in enumerate(zip(pairs, draws, strict=True))
        ]

    def encode(self, tasks: Sequence[Task], outputs: Sequence[Any]) -> list[Rollout]:
        """Points as rollouts for forward decisions: nobody knows the path that led to them."""
        nowhere = torch.zeros(self.STEPS + 1, 2)
        rollouts = []
        for task, point in zip(tasks, outputs, strict=True):
            path = nowhere + torch.as_tensor(point)
            rollouts.append(self._rollout(task, generator("encode", task.id, tuple(point)), nowhere, path, None))
        return rollouts

    def _rollout(
        self, task: Task, draw: torch.Generator, noise: Tensor, path: Tensor, log_probs: Tensor | None
    ) -> Rollout:
        payload = {
            "task": torch.tensor([task.prompt]),
            "noise": noise,
            "path": path,
            "forward_t": torch.rand(self.STEPS, 1, generator=draw),
            "forward_noise": torch.randn(self.STEPS, 2, generator=draw),
        }
        mask = torch.ones(self.STEPS, dtype=torch.bool)
        return Rollout(task, path[-1], payload, log_probs, mask, torch.arange(self.STEPS))

    def _denoise(self, task: Tensor, noise: Tensor) -> Tensor:
        """The path [B, T + 1, 2] from noise [B, T + 1, 2], with graph: noise[:, 0] is where it starts."""
        path = [noise[:, 0]]
        for step, t in enumerate(self._times(noise)):
            v = self.velocity(task, path[-1], t.expand(len(task), 1))
            path.append(path[-1] - v / self.STEPS + self.SIGMA * noise[:, step + 1])
        return torch.stack(path, 1)

    def _gaussian(self, offset: Tensor) -> Tensor:
        """Log-density of an offset [..., 2] from the mean."""
        return -(offset**2).sum(-1) / (2 * self.SIGMA**2) - math.log(2 * math.pi * self.SIGMA**2)

    def collate(self, rollouts: Sequence[Rollout], decisions: Decisions = "sampled") -> Batch:
        batch = super().collate(rollouts)
        if decisions == "sampled":
            return batch
        return replace(batch, payload=batch.payload | {"forward": torch.ones(len(batch))}, log_probs={})

    def forward_decisions(self, batch: Batch, needs: frozenset[str], references: Mapping[str, Any]) -> Evaluation:
        data = batch.payload
        task = data["task"].expand(-1, self.STEPS)
        if "forward" in data:
            t, noise, clean = data["forward_t"], data["forward_noise"], data["path"][:, -1:]
            where = (task, (1 - t) * clean + t * noise, t)
            v = self.velocity(*where)
            now = Evaluation(-((noise - clean - v) ** 2).sum(-1) / 2)
            drift_scale = 1.0
        else:
            x, t = data["path"][:, :-1], self._times(data["path"])
            where = (task, x, t.expand(len(batch), -1, 1))
            v = self.velocity(*where)
            now = Evaluation(self._gaussian(data["path"][:, 1:] - (x - v / self.STEPS)))
            drift_scale = 1 / (self.STEPS * self.SIGMA) ** 2
        for name in _policies(needs):
            with torch.no_grad():
                other = references[name].velocity(*where)
            now.kl[name] = drift_scale * ((v - other) ** 2).sum(-1) / 2
        if "outputs" in needs:
            now.outputs = self._denoise(data["task"][:, 0], data["noise"])[:, -1]
        return now


def _policies(needs: frozenset[str]) -> list[str]:
    return sorted(need.removeprefix("kl:") for need in needs if need.startswith("kl:"))


def spelling_tasks() -> list[Task]:
    """Four words, one shorter than the others so that batches are padded."""
    words = [(2, 1, 0), (3, 3, 1), (0, 2, 2), (1, 3)]
    return [Task(f"spell-{i}", i, reference=word, horizon=len(word)) for i, word in enumerate(words)]


def drawing_tasks() -> list[Task]:
    """Four points to hit, none of them where an untrained denoiser draws."""
    points = [(1.2, 0.0), (0.0, -1.2), (-1.0, 1.0), (0.8, 0.8)]
    return [Task(f"draw-{i}", i, reference=torch.tensor(point)) for i, point in enumerate(points)]


def spelling_reward(rollout: Rollout) -> float:
    """Fraction of right tokens."""
    right = [mine == theirs for mine, theirs in zip(rollout.output, rollout.task.reference, strict=True)]
    return sum(right) / len(right)


def drawing_reward(rollout: Rollout) -> float:
    """Minus the distance to the task's point."""
    return -float((rollout.output - rollout.task.reference).norm())
