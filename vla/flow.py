"""A flow-matching head for robot policies: a chunk of actions is what noise flows to.

With noise e, actions a and t in 0..1 the path is x_t = (1 - t) a + t e, whose velocity e - a the network predicts from
(x_t, t, what was seen). Imitation is conditional flow matching (arXiv 2210.02747, not checked against the paper):
|e - a - v(x_t, t)|^2. Greedy acting integrates dx = v dt from t = 1 to 0 by K Euler steps, starting at zero.

Sampling adds noise in every step without changing what is distributed at each t, so each step is a Gaussian decision:

    x' = x - v dt - s^2 / 2 (e_hat / t) dt + s sqrt(dt) z,   e_hat = x + (1 - t) v,   s = a sqrt(t / (1 - t)),

the flow SDE of Flow-GRPO (arXiv 2505.05470) and pi_RL (arXiv 2510.25889; the three formulae were checked against their
published code, the papers were not). -e_hat / t is the score of x_t. At t = 1, where s is infinite, 1 - t is taken from
the chain's second level, as that code does. The last step's noise would be the action's own; it is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..types import Decisions, Evaluation
from .chunk_policy import Seen
from .network import NetworkPolicy, RobotNetwork, Trunk, mlp

FREQUENCIES = 8
"""Sines and cosines by which the network is told t."""


class FlowModel(RobotNetwork):
    """What was seen, a noisy chunk x [N, C, A] and its time t [N] -> a velocity [N, C, A].

    Args:
        observation_size: D; action_size: A, every dimension in [-1, 1]; chunk: C steps.
        hidden, layers: width and depth of the MLP that encodes what was seen, and of the one that makes velocities.
        critic: what says what states are worth, see ``add_critic``.
        buckets, word_size, origin, positions, vision: see ``RobotNetwork``.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int = 4,
        *,
        chunk: int = 5,
        hidden: int = 256,
        layers: int = 3,
        critic: Trunk = "none",
        **inputs: Any,
    ) -> None:
        super().__init__(observation_size, action_size, chunk, **inputs)
        self.body, width = mlp(self.width, hidden, max(1, layers - 1))
        self.flow, width = mlp(width + chunk * action_size + 2 * FREQUENCIES, hidden, layers)
        self.out = nn.Linear(width, chunk * action_size)
        self.add_critic(critic)

    def forward(self, observations: Tensor, words: Tensor, looks: Tensor | None = None) -> Tensor:
        """[N, hidden] what was seen, which all denoising steps share."""
        found: Tensor = self.body(self.context(observations, words, looks))
        return found

    def velocity(self, context: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """[N, C, A] at times [N]."""
        scales = math.pi * 2.0 ** torch.arange(FREQUENCIES, device=t.device) / 2
        angles = t[:, None] * scales
        told = torch.cat([context, x.flatten(1), angles.sin(), angles.cos()], -1)
        found: Tensor = self.out(self.flow(told))
        return found.float().view_as(x)


class FlowPolicy(NetworkPolicy):
    """``FlowModel`` as a policy of the core.

    A decision is one denoising step of a chunk, a Gaussian over C * A scalars: K per chunk. It stores "path"
    [S, K + 1, C, A] from noise to actions. Demonstrations have "clean" [S, C, A] and forward decisions only: (t, e) is
    drawn once for all policies compared, and the log-probability is -|e - a - v|^2 / 2, over the steps that were
    executed. A chunk that was begun counts as a whole where its chain of denoising is learned from.

    Args:
        steps: K.
        noise: a of the SDE.
        forward_draws: forward decisions per chunk.
        micro_batch_rows: chunks evaluated at once in learning; None is 16384, or 512 where frames are seen.
    """

    network = FlowModel
    saved = ("steps", "noise", "forward_draws")
    capabilities = frozenset({"exact", "forward", "kl"})
    demonstrations: Decisions = "forward"

    def __init__(
        self,
        model: FlowModel,
        *,
        steps: int = 4,
        noise: float = 0.5,
        forward_draws: int = 4,
        micro_batch_rows: int | None = None,
    ) -> None:
        if steps < 2 or noise <= 0 or forward_draws < 1:
            raise ValueError(f"FlowPolicy: steps ({steps}) start at 2, noise ({noise:g}) above 0, draws at 1")
        super().__init__(
            model, decisions=steps, dims=model.chunk * model.action_size, micro_batch_rows=micro_batch_rows
        )
        self.model, self.steps, self.noise, self.forward_draws = model, steps, noise, forward_draws
        self.times = torch.linspace(1, 0, steps + 1)
        t, dt = self.times[:-1], 1 / steps
        rate = noise**2 * t / torch.where(t == 1, 1 - self.times[1], 1 - t)
        # x' = x - v dt - rate dt e_hat / (2 t) as a line in (x, v)
        self.mean_x = 1 - rate * dt / (2 * t)
        self.mean_v = -dt - rate * dt * (1 - t) / (2 * t)
        self.std = (rate * dt).sqrt()

    # acting

    def decide(
        self, seen: Seen, randomness: Sequence[Any] | None, temperature: float
    ) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        looks = self.looks(seen, {})
        context = self._context(seen, looks)
        shape = (self.steps + 1, self.chunk, self.action_size)
        if randomness is None:
            x = torch.zeros(len(seen), *shape[1:], device=self.device)
        else:
            drawn = torch.stack([torch.randn(shape, generator=random) for random in randomness]).to(self.device)
            x = drawn[:, 0]
        path, log_probs = [x], []
        for k in range(self.steps):
            velocity = self.model.velocity(context, x, self.times[k].to(x).expand(len(x)))
            if randomness is None:
                x = x - velocity / self.steps
            else:
                mean, std = float(self.mean_x[k]) * x + float(self.mean_v[k]) * velocity, self.std[k] * temperature
                x = mean + std.to(x) * drawn[:, k + 1]
                log_probs.append(_log_normal(x, mean, std.to(x)))
            path.append(x)
        stored = {"path": torch.stack(path, 1), **self.kept(looks)}
        return x.clamp(-1, 1), stored, torch.stack(log_probs, 1) if log_probs else None

    # learning

    def imitate(self, seen: Seen, actions: Tensor) -> dict[str, Tensor]:
        return {"clean": actions, **self.kept(None if self.keeps_frames else self.looks(seen, {}))}

    def redraw(self, stored: Mapping[str, Tensor], random: torch.Generator) -> dict[str, Tensor]:
        """Times in equal shares of 0..1, one in each, and noises."""
        clean = stored["clean"] if "clean" in stored else stored["path"][:, -1]
        shares = torch.rand(len(clean), self.forward_draws, generator=random) + torch.arange(self.forward_draws)
        noise = torch.randn(len(clean), self.forward_draws, *clean.shape[1:], generator=random)
        kept = {"looks": stored["looks"]} if "looks" in stored else {}
        return {"clean": clean, "time": shares / self.forward_draws, "noise": noise, **kept}

    def score(self, seen: Seen, stored: Mapping[str, Tensor]) -> Evaluation:
        return self.compare(seen, stored, {})

    def compare(self, seen: Seen, stored: Mapping[str, Tensor], others: Mapping[str, Any]) -> Evaluation:
        forward = "clean" in stored
        if forward:
            clean, noise = stored["clean"][:, None], stored["noise"]
            time = stored["time"]
            t = time[..., None, None]
            x = (1 - t) * clean + t * noise
        else:
            x, time = stored["path"][:, :-1], self.times[:-1].to(self.device).expand(len(seen), -1)
        velocity = self._velocities(seen, stored, x, time)
        with torch.no_grad():
            theirs = {name: other._velocities(seen, stored, x, time) for name, other in others.items()}
        if forward:
            kept = self.executed(seen, stored)[:, None, :, None]
            kl = {name: _half_square(kept * (velocity - other)) for name, other in theirs.items()}
            return Evaluation(-_half_square(kept * (noise - clean - velocity)), kl=kl)
        scale_x, scale_v, std = (table.to(x)[None, :, None, None] for table in (self.mean_x, self.mean_v, self.std))
        std = std * stored["temperature"][:, None, None, None]
        kl = {name: _half_square(scale_v * (velocity - other) / std) for name, other in theirs.items()}
        return Evaluation(_log_normal(stored["path"][:, 1:], scale_x * x + scale_v * velocity, std), kl=kl)

    def imitation_loss(self, seen: Seen, stored: Mapping[str, Tensor]) -> Tensor:
        """Conditional flow matching, per scalar of the steps that are shown."""
        found = self.score(seen, stored).log_probs
        return -2 * found.mean(1).sum() / (self.executed(seen, stored).sum() * self.action_size)

    def _context(self, seen: Seen, looks: Tensor | None) -> Tensor:
        found: Tensor = self.module(seen.states, self.model.words_of(seen.instructions), looks)
        return found

    def _velocities(self, seen: Seen, stored: Mapping[str, Tensor], x: Tensor, time: Tensor) -> Tensor:
        """[N, K, C, A] at x [N, K, C, A] and times [N, K]; what was seen is encoded once."""
        context = self._context(seen, self.looks(seen, stored))
        every = context.repeat_interleave(x.shape[1], 0)
        return self.model.velocity(every, x.flatten(0, 1), time.flatten()).view_as(x)


def _half_square(values: Tensor) -> Tensor:
    """[N, K] half the squared length of values [N, K, C, A]."""
    return values.flatten(2).square().sum(-1) / 2


def _log_normal(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-density of N(mean, std^2) at x [..., C, A], summed over its scalars; ``std`` broadcasts."""
    logs = -(((x - mean) / std) ** 2) / 2 - std.log() - math.log(2 * math.pi) / 2
    return logs.flatten(-2).sum(-1)
