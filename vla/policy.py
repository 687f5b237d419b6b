"""A small policy that moves: instruction and state in, a chunk of actions out.

Two heads. *tokens*: every action dimension of every step of the chunk is one of ``bins`` tokens.
*gaussian*: every step of the chunk is a diagonal Gaussian. Both explore coherently in time: the
noise of consecutive environment steps is AR(1) with correlation ``rho``, because independent noise
averages out before the hand has gone anywhere.

For the Gaussian head the conditional density given the previous step is Gaussian too, so exact
log-probabilities are at hand. For tokens the AR(1) noise is a Gaussian copula over categorical
marginals; its conditional probabilities have no closed form, and the product of the marginals is
used instead: a *composite likelihood*. The capability says which ("exact" or "composite").

The composite likelihood is also offered for the Gaussian head, for a reason of variance. With noise n
of covariance S, the exact score of the mean actions is S^-1 n / std, which amplifies the fast
components of the noise; the composite one is n / std, the exact gradient preconditioned by S. Both
point uphill, the second far more steadily when exploration is slow.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from ..trainers.policy import TorchPolicy
from ..types import Batch, Evaluation, Rollout, Task

Head = Literal["tokens", "gaussian"]
Likelihood = Literal["exact", "composite"]


class ActionModel(nn.Module, PyTorchModelHubMixin):
    """[N, D] observations and [N, L] word ids -> one chunk of action distributions.

    Args:
        observation_size: D; action_size: A, every dimension in [-1, 1]; chunk: C steps.
        bins: tokens per action dimension (head "tokens").
        hidden, layers: width and depth of the MLP.
        buckets: hash buckets of the instruction's words (bucket 0 is padding); word_size: their width.
        origin, positions: where positions (three numbers each) begin in an observation. Those in ``positions``
            are seen relative to ``origin``, which is then left out: a hand-centred view, in which one
            demonstration teaches every place. None sees the observation as it is.
        std: of the Gaussian head at the start, in units of the action.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        observation_size: int,
        action_size: int = 4,
        *,
        chunk: int = 5,
        head: Head = "tokens",
        bins: int = 32,
        hidden: int = 256,
        layers: int = 3,
        buckets: int = 512,
        word_size: int = 32,
        origin: int | None = None,
        positions: Sequence[int] = (),
        std: float = 0.2,
    ) -> None:
        super().__init__()
        if head not in ("tokens", "gaussian"):
            raise ValueError(f"unknown head {head!r}: tokens or gaussian")
        self.observation_size, self.action_size, self.chunk = observation_size, action_size, chunk
        self.head, self.bins, self.buckets = head, bins, buckets
        self.origin, self.positions = origin, tuple(positions)
        size = observation_size - (0 if origin is None else 3)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))
        self.words = nn.EmbeddingBag(buckets, word_size, mode="mean", padding_idx=0)
        width, blocks = size + word_size, []
        for _ in range(layers):
            blocks += [nn.Linear(width, hidden), nn.SiLU()]
            width = hidden
        self.body = nn.Sequential(*blocks)
        self.out = nn.Linear(width, chunk * action_size * (bins if head == "tokens" else 1))
        if head == "gaussian":
            self.log_std = nn.Parameter(torch.full((action_size,), math.log(std)))

    def forward(self, observations: Tensor, words: Tensor) -> Tensor:
        """[N, C, A, bins] logits, or [N, C, A] means in (-1, 1)."""
        state = ((self.view(observations) - self.mean) / self.std).clamp(-10, 10)
        out = self.out(self.body(torch.cat([state, self.words(words)], -1)))
        shape = (len(observations), self.chunk, self.action_size)
        return out.view(*shape, self.bins) if self.head == "tokens" else torch.tanh(out.view(shape))

    def view(self, observations: Tensor) -> Tensor:
        """Observations [N, D] as the network sees them, before normalisation."""
        if self.origin is None:
            return observations
        seen = observations.clone()
        for place in self.positions:
            seen[:, place : place + 3] -= observations[:, self.origin : self.origin + 3]
        return torch.cat([seen[:, : self.origin], seen[:, self.origin + 3 :]], -1)

    def normalise_by(self, observations: Tensor, floor: float = 0.02) -> None:
        """Set the input normalisation from [N, D] observations; ``floor`` keeps constant inputs quiet."""
        seen = self.view(observations)
        self.mean.copy_(seen.mean(0))
        self.std.copy_(seen.std(0).clamp(min=floor))


def word_ids(instruction: str, buckets: int) -> Tensor:
    """[L] hash buckets of the words, never 0."""
    words = instruction.lower().replace("-", " ").split() or [""]
    return torch.tensor([1 + zlib.crc32(word.encode()) % (buckets - 1) for word in words])


class ActionPolicy(TorchPolicy):
    """``ActionModel`` as a policy of the core.

    A payload holds, per chunk: "observations" [S, D], "actions" (tokens or values) [S, C, A], "noise"
    [S, C, A]; and per rollout "words" [L] and "temperature" [1]. Decisions: T = S*C*A tokens, or
    T = S*C Gaussian steps; segments are chunks.

    Args:
        rho: correlation of the exploration noise between consecutive environment steps.
        likelihood: "exact" conditionals (Gaussian head only) or the "composite" product of marginals.
    """

    def __init__(
        self, model: ActionModel, *, rho: float = 0.9, likelihood: Likelihood = "composite", piece: int = 256
    ) -> None:
        super().__init__(model, piece=piece)
        if likelihood == "exact" and model.head == "tokens":
            raise ValueError("tokens with coherent noise have no exact likelihood: use likelihood='composite'")
        self.model = model
        self.rho, self.likelihood = rho, likelihood
        self.capabilities = frozenset({likelihood, "entropy", "kl"})

    @property
    def conditional_rho(self) -> float:
        """The correlation that the likelihood takes account of."""
        return self.rho if self.likelihood == "exact" else 0.0

    @property
    def per_chunk(self) -> int:
        """Decisions per chunk."""
        return self.model.chunk * (self.model.action_size if self.model.head == "tokens" else 1)

    def decision_dims(self, rollout: Rollout) -> int:
        return 1 if self.model.head == "tokens" else self.model.action_size

    # acting

    @torch.no_grad()
    def decide(
        self,
        observations: Tensor,
        words: Tensor,
        noise: Tensor | None = None,
        before: Tensor | None = None,
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One chunk for each of N observations.

        Args:
            noise: [N, C, A] standard normal, coherent in time; None acts greedily.
            before: [N, A] noise of the last step of the previous chunk; NaN at an episode's start.

        Returns:
            actions [N, C, A] in [-1, 1]; what the payload stores of them (tokens or values); their
            log-probabilities [N, decisions per chunk], zero when greedy.
        """
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            out = self.module(observations.to(self.device), words.to(self.device)).float().cpu()
        silent = torch.zeros(len(out), self.per_chunk)
        if self.model.head == "gaussian":
            std = self.model.log_std.exp().cpu() * temperature
            if noise is None:
                return out.clamp(-1, 1), out, silent
            values = out + std * noise
            return values.clamp(-1, 1), values, self._density(noise, before, std)
        if noise is None:
            tokens = out.argmax(-1)
            return self.centres(tokens), tokens, silent
        logs = (out / temperature).log_softmax(-1)
        quantile = torch.special.ndtr(noise)[..., None]
        tokens = torch.searchsorted(logs.exp().cumsum(-1), quantile).squeeze(-1).clamp(max=self.model.bins - 1)
        return self.centres(tokens), tokens, logs.gather(-1, tokens[..., None]).flatten(1)

    def _density(self, noise: Tensor, before: Tensor | None, std: Tensor) -> Tensor:
        """[N, C] log-density of each step's action given the step before it."""
        last = torch.full_like(noise[:, 0], torch.nan) if before is None else before
        previous = torch.cat([last.nan_to_num()[:, None], noise[:, :-1]], 1)
        rho = torch.full_like(noise, self.conditional_rho)
        rho[:, 0] = torch.where(last.isnan(), 0.0, self.conditional_rho)
        return (_conditional(noise, previous, rho) - std.log()).sum(-1)

    def centres(self, tokens: Tensor) -> Tensor:
        """The action value in the middle of each token's bin."""
        return (2 * tokens + 1).float() / self.model.bins - 1

    def tokens_of(self, actions: Tensor) -> Tensor:
        """The bin of each action value."""
        return ((actions + 1) / 2 * self.model.bins).long().clamp(0, self.model.bins - 1)

    def coherent_noise(self, steps: int, generator: torch.Generator) -> Tensor:
        """[steps, A] AR(1) noise with standard normal marginals."""
        fresh = torch.randn(steps, self.model.action_size, generator=generator)
        scale = math.sqrt(1 - self.rho**2)
        noise = [fresh[0]]
        for step in range(1, steps):
            noise.append(self.rho * noise[-1] + scale * fresh[step])
        return torch.stack(noise)

    # learning

    def forward_decisions(self, batch: Batch, needs: frozenset[str]) -> Evaluation:
        payload = batch.payload
        size, chunks = payload["observations"].shape[:2]
        valid = batch.mask.view(size, chunks, self.per_chunk).any(-1)
        words = payload["words"][:, None].expand(-1, chunks, -1)[valid]
        inputs = (payload["observations"][valid], words)
        temperature = payload["temperature"][:, None, None].expand(-1, chunks, 1, 1)[valid]
        out = self.module(*inputs)
        others = {n.partition(":")[2]: None for n in needs if n.startswith("kl:")}
        with torch.no_grad():
            theirs = {name: self.references[name].module(*inputs) for name in others}
        if self.model.head == "tokens":
            parts = _categorical(out, payload["actions"][valid], temperature, theirs)
        else:
            stds = {name: cast(ActionModel, self.references[name].module).log_std.exp() for name in others}
            parts = self._gaussian(out, batch, valid, temperature, {n: (theirs[n], stds[n]) for n in others})
        rows = {name: _scatter(part, valid).reshape(size, -1) * batch.mask for name, part in parts.items()}
        kl = {name: rows.pop(f"kl:{name}") for name in others}
        return Evaluation(rows["log_probs"], rows["entropy"] if "entropy" in needs else None, kl=kl)

    def _gaussian(
        self,
        mean: Tensor,
        batch: Batch,
        valid: Tensor,
        temperature: Tensor,
        others: Mapping[str, tuple[Tensor, Tensor]],
    ) -> dict[str, Tensor]:
        """Exact conditionals of AR(1) noise: n_t = (a_t - mean_t) / std, n_t | n_{t-1} ~ N(rho n_{t-1}, 1 - rho^2).

        A divergence is between the conditionals too, so over an episode its mean is the divergence of the episodes.
        """
        std = self.model.log_std.exp() * temperature
        values = batch.payload["actions"][valid]
        noise = (values - mean) / std
        before = _previous_step(noise, valid)
        rho = torch.full_like(_scatter(noise[..., :1], valid), self.conditional_rho)
        rho[:, 0, 0] = 0.0
        if not bool(batch.payload["coherent"].all()):  # demonstrations: overlapping chunks, independent steps
            rho = rho * batch.payload["coherent"][:, :, None, None]
        rho = rho[valid]
        logs = _conditional(noise, before, rho) - std.log()
        spread = std * (1 - rho**2).sqrt()
        entropy = (spread.log() + 0.5 * math.log(2 * math.pi * math.e)).expand_as(logs)
        parts = {"log_probs": logs.sum(-1), "entropy": entropy.sum(-1)}
        for name, (centre, other) in others.items():
            other = other * temperature
            theirs = centre + rho * other * _previous_step((values - centre) / other, valid)
            gap = (mean + rho * std * before - theirs) ** 2 / (1 - rho**2)
            parts[f"kl:{name}"] = (other.log() - std.log() + (gap + std**2) / (2 * other**2) - 0.5).sum(-1)
        return parts

    def encode(self, tasks: Sequence[Task], outputs: Sequence[Any]) -> list[Rollout]:
        """Demonstrations (``observations`` [N+1, D], ``actions`` [N, A]) as rollouts.

        Every step starts a chunk, so chunks overlap; the last ones repeat the final action.
        """
        return [self._encode(task, demo) for task, demo in zip(tasks, outputs, strict=True)]

    def _encode(self, task: Task, demonstration: Any) -> Rollout:
        actions = torch.as_tensor(demonstration.actions, dtype=torch.float32)
        steps = len(actions)
        index = (torch.arange(steps)[:, None] + torch.arange(self.model.chunk)).clamp(max=steps - 1)
        chunks = actions[index]  # [N, C, A]
        observations = torch.as_tensor(demonstration.observations[:steps], dtype=torch.float32)
        stored = self.tokens_of(chunks) if self.model.head == "tokens" else chunks
        payload = self.payload(observations, stored, torch.zeros_like(chunks), str(task.prompt), 1.0, coherent=False)
        return self.rollout(task, demonstration, payload, None)

    def payload(
        self,
        observations: Tensor,
        actions: Tensor,
        noise: Tensor,
        instruction: str,
        temperature: float,
        *,
        coherent: bool = True,
    ) -> dict[str, Tensor]:
        return {
            "observations": observations,
            "actions": actions,
            "noise": noise,
            "words": word_ids(instruction, self.model.buckets),
            "temperature": torch.tensor([temperature]),
            "coherent": torch.tensor([coherent]),
        }

    def rollout(self, task: Task, output: Any, payload: dict[str, Tensor], log_probs: Tensor | None) -> Rollout:
        """A rollout of S chunks; all their decisions count."""
        chunks = len(payload["observations"])
        mask = torch.ones(chunks * self.per_chunk, dtype=torch.bool)
        segments = torch.arange(chunks).repeat_interleave(self.per_chunk)
        return Rollout(task, output, payload, log_probs, mask, segments, group=task.id)

    def save_pretrained(self, folder: str) -> None:
        """Weights and config in a folder that ``from_pretrained`` reads."""
        self.model.save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, name_or_path: str, **policy: Any) -> ActionPolicy:
        """A policy from a folder or a hub repository."""
        return cls(ActionModel.from_pretrained(name_or_path), **policy)


def _conditional(noise: Tensor, before: Tensor, rho: Tensor) -> Tensor:
    """Log-density of N(rho * before, 1 - rho^2) at ``noise``, elementwise."""
    spread = (1 - rho**2).sqrt()
    return -0.5 * ((noise - rho * before) / spread) ** 2 - spread.log() - 0.5 * math.log(2 * math.pi)


def _categorical(
    logits: Tensor, tokens: Tensor, temperature: Tensor, others: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Marginal log-probabilities, entropies and divergences of tokens, [N, C*A] each."""
    logs = (logits / temperature[..., None]).log_softmax(-1)
    parts = {"log_probs": logs.gather(-1, tokens[..., None])[..., 0], "entropy": -(logs.exp() * logs).sum(-1)}
    for name, other in others.items():
        theirs = (other / temperature[..., None]).log_softmax(-1)
        parts[f"kl:{name}"] = (logs.exp() * (logs - theirs)).sum(-1)
    return {name: part.flatten(1) for name, part in parts.items()}


def _previous_step(noise: Tensor, valid: Tensor) -> Tensor:
    """Noise [N, C, A] of the valid chunks, one environment step earlier; zeros at an episode's start."""
    steps = _scatter(noise, valid).flatten(1, 2)  # [B, S*C, A] in time order
    before = torch.cat([torch.zeros_like(steps[:, :1]), steps[:, :-1]], 1)
    return torch.unflatten(before, 1, (-1, noise.shape[1]))[valid]


def _scatter(values: Tensor, valid: Tensor) -> Tensor:
    """[N, ...] values of the valid places back into [B, S, ...], zeros elsewhere."""
    full = values.new_zeros(*valid.shape, *values.shape[1:])
    full[valid] = values
    return full
