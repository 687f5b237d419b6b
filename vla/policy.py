"""A small policy that moves: instruction and state in, a chunk of actions out.

Three heads. *tokens*: every action dimension of every step of the chunk is one of ``bins`` tokens.
*categorical*: every step is one of A choices, the largest of its A numbers. *gaussian*: every step of
the chunk is a diagonal Gaussian. All explore coherently in time: the noise of consecutive environment
steps is AR(1) with correlation ``rho``, because independent noise averages out before the hand has
gone anywhere.

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
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..types import Evaluation
from .chunk_policy import Seen
from .network import NetworkPolicy, RobotNetwork, Trunk, mlp

Head = Literal["tokens", "gaussian", "categorical"]
UNDECIDED = -0.5
"""Log of a Gaussian's standard deviation, in units of the action, where nothing was imitated: it has to find out."""

Likelihood = Literal["exact", "composite"]


class ActionModel(RobotNetwork):
    """[N, D] observations, [N, L] word ids and what was seen -> one chunk of action distributions.

    Args:
        observation_size: D; action_size: A, every dimension in [-1, 1]; chunk: C steps.
        bins: tokens per action dimension (head "tokens").
        hidden, layers: width and depth of the MLP.
        buckets, word_size, origin, positions, vision: see ``RobotNetwork``.
        std: of the Gaussian head at the start, in units of the action.
        critic: what says what states are worth, see ``add_critic``.
    """

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
        std: float = 0.2,
        critic: Trunk = "none",
        **inputs: Any,
    ) -> None:
        super().__init__(observation_size, action_size, chunk, **inputs)
        if head not in ("tokens", "gaussian", "categorical"):
            raise ValueError(f"unknown head {head!r}: tokens, gaussian or categorical")
        self.head, self.bins = head, action_size if head == "categorical" else bins
        self.factors = 1 if head == "categorical" else action_size
        self.body, width = mlp(self.width, hidden, layers)
        self.out = nn.Linear(width, chunk * (action_size if head == "gaussian" else self.factors * self.bins))
        if head == "gaussian":
            self.log_std = nn.Parameter(torch.full((action_size,), math.log(std)))
        self.add_critic(critic)

    def forward(self, observations: Tensor, words: Tensor, looks: Tensor | None = None) -> Tensor:
        """[N, C, A, bins] logits, [N, C, 1, A] of choices, or [N, C, A] means in (-1, 1)."""
        out = self.out(self.body(self.context(observations, words, looks)))
        shape = (len(observations), self.chunk, self.factors)
        return torch.tanh(out.view(shape)) if self.head == "gaussian" else out.view(*shape, self.bins)


class EpisodeNoise:
    """The coherent noise of one episode, chunk by chunk.

    Args:
        noise: [B, S, C, A] of B episodes; row: which is its own.
    """

    def __init__(self, noise: Tensor, row: int = 0) -> None:
        self.noise, self.row, self.taken = noise, row, 0


def taken(episodes: Sequence[EpisodeNoise]) -> tuple[Tensor, Tensor]:
    """The next chunks' noise [N, C, A] and that of the steps before them [N, A], NaN at an episode's start."""
    places: dict[int, list[int]] = {}
    for place, episode in enumerate(episodes):
        places.setdefault(id(episode.noise), []).append(place)
    noise = torch.empty(len(episodes), *episodes[0].noise.shape[2:])
    before = torch.empty(len(episodes), noise.shape[2])
    for several in places.values():
        rows = torch.tensor([episodes[place].row for place in several])
        chunks = torch.tensor([episodes[place].taken for place in several])
        whole = episodes[several[0]].noise
        noise[several] = whole[rows, chunks]
        before[several] = torch.where(chunks[:, None] > 0, whole[rows, chunks - 1, -1], torch.nan)
    for episode in episodes:
        episode.taken += 1
    return noise, before


class ActionPolicy(NetworkPolicy):
    """``ActionModel`` as a policy of the core.

    It stores "actions" (tokens or values [S, C, A], choices [S, C, 1]), and "coherent" [S]: whether consecutive chunks
    are consecutive in time. Decisions per chunk: C*A tokens, C choices, or C Gaussian steps.

    Args:
        rho: correlation of the exploration noise between consecutive environment steps.
        likelihood: "exact" conditionals (Gaussian head only) or the "composite" product of marginals.
        smoothing: width in bins of the Gaussian that replaces a token's one-hot target in imitation (neighbouring
            bins are almost the same action).
        micro_batch_rows: chunks evaluated at once in learning; None is 16384, or 512 where frames are seen.
    """

    network = ActionModel
    saved = ("rho", "likelihood", "smoothing")
    stepwise = True

    def __init__(
        self,
        model: ActionModel,
        *,
        rho: float = 0.9,
        likelihood: Likelihood = "composite",
        smoothing: float = 0.7,
        micro_batch_rows: int | None = None,
    ) -> None:
        tokens = model.head != "gaussian"
        if likelihood == "exact" and tokens:
            raise ValueError("tokens with coherent noise have no exact likelihood: use likelihood='composite'")
        decisions = model.chunk * (model.factors if tokens else 1)
        self.capabilities = frozenset({likelihood, "entropy", "kl"})
        super().__init__(
            model, decisions=decisions, dims=1 if tokens else model.action_size, micro_batch_rows=micro_batch_rows
        )
        self.model = model
        self.rho, self.likelihood, self.smoothing = rho, likelihood, smoothing

    def start_undecided(self) -> None:
        super().start_undecided()
        if self.model.head == "gaussian":
            self.set_log_std(UNDECIDED)

    def set_log_std(self, log_std: float) -> None:
        if self.model.head != "gaussian":
            super().set_log_std(log_std)
        nn.init.constant_(self.model.log_std, log_std)

    @property
    def whole_episodes(self) -> bool:  # type: ignore[override]
        """Exact likelihoods of coherent noise look at the step before."""
        return self.conditional_rho != 0

    @property
    def conditional_rho(self) -> float:
        """The correlation that the likelihood takes account of."""
        return self.rho if self.likelihood == "exact" else 0.0

    # acting

    def begin(self, randoms: Sequence[torch.Generator], chunks: Sequence[int]) -> list[EpisodeNoise]:
        noise = self.coherent_noise([count * self.chunk for count in chunks], randoms)
        noise = torch.unflatten(noise, 1, (-1, self.chunk))
        return [EpisodeNoise(noise, row) for row in range(len(randoms))]

    def decide(
        self, seen: Seen, randomness: Sequence[Any] | None, temperature: float
    ) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        looks = self.looks(seen, {})
        out = self._out(seen, looks).cpu()
        kept = {"coherent": torch.ones(len(out), dtype=torch.bool), **self.kept(looks)}
        noise = before = None
        if randomness is not None:
            noise, before = taken(randomness)
        if self.model.head == "gaussian":
            if noise is None or before is None:
                return out.clamp(-1, 1), {"actions": out, **kept}, None
            std = self.model.log_std.exp().cpu() * temperature
            values = out + std * noise
            return values.clamp(-1, 1), {"actions": values, **kept}, self._density(noise, before, std)
        if noise is None:
            tokens = out.argmax(-1)
            return self.centres(tokens), {"actions": tokens, **kept}, None
        logs = (out / temperature).log_softmax(-1)
        quantile = torch.special.ndtr(noise)[..., None]
        tokens = torch.searchsorted(logs.exp().cumsum(-1), quantile).squeeze(-1).clamp(max=self.model.bins - 1)
        found = logs.gather(-1, tokens[..., None]).flatten(1)
        return self.centres(tokens), {"actions": tokens, **kept}, found

    def _out(self, seen: Seen, looks: Tensor | None) -> Tensor:
        """[N, C, A, bins] logits, or [N, C, A] means; in float32, whatever the network computes in."""
        out: Tensor = self.module(seen.states, self.model.words_of(seen.instructions), looks)
        return out.float()

    def _density(self, noise: Tensor, before: Tensor, std: Tensor) -> Tensor:
        """[N, C] log-density of each step's action given the step before it; ``before`` [N, A] is NaN at the start."""
        previous = torch.cat([before.nan_to_num()[:, None], noise[:, :-1]], 1)
        rho = torch.full_like(noise, self.conditional_rho)
        rho[:, 0] = torch.where(before.isnan(), 0.0, self.conditional_rho)
        return (_conditional(noise, previous, rho) - std.log()).sum(-1)

    def centres(self, tokens: Tensor) -> Tensor:
        """The action value in the middle of each token's bin; of a choice 1, of the others -1."""
        if self.model.head == "categorical":
            return 2 * nn.functional.one_hot(tokens[..., 0], self.model.bins).float() - 1
        return (2 * tokens + 1).float() / self.model.bins - 1

    def tokens_of(self, actions: Tensor) -> Tensor:
        """The bin of each action value, or the choice of each action."""
        if self.model.head == "categorical":
            return actions.argmax(-1, keepdim=True)
        return ((actions + 1) / 2 * self.model.bins).long().clamp(0, self.model.bins - 1)

    def coherent_noise(self, steps: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
        """[B, steps, A] AR(1) noise of B episodes with standard normal marginals, zeros where one is over.

        Choices have one number each, [B, steps, 1].
        """
        noise = torch.zeros(len(steps), max(steps), self.model.factors)
        for row, count, generator in zip(noise, steps, generators, strict=True):
            torch.randn(row[:count].shape, generator=generator, out=row[:count])
        scale = math.sqrt(1 - self.rho**2)
        for step in range(1, noise.shape[1]):
            noise[:, step] = self.rho * noise[:, step - 1] + scale * noise[:, step]
        return noise

    # learning

    def imitate(self, seen: Seen, actions: Tensor) -> dict[str, Tensor]:
        stored = actions if self.model.head == "gaussian" else self.tokens_of(actions)
        coherent = torch.zeros(len(actions), dtype=torch.bool)  # chunks overlap
        return {
            "actions": stored,
            "coherent": coherent,
            **({} if self.keeps_frames else self.kept(self.looks(seen, {}))),
        }

    def imitation_loss(self, seen: Seen, stored: Mapping[str, Tensor]) -> Tensor:
        """Squared error of the means (the spread is for exploring, not for copying), or smoothed cross-entropy."""
        out, wanted = self._out(seen, self.looks(seen, stored)), stored["actions"]
        if self.model.head == "gaussian":
            off = (out - wanted) ** 2
        else:
            bins = torch.arange(self.model.bins, device=out.device)
            width = self.smoothing if self.model.head == "tokens" else 1e-3  # choices have no neighbours
            near = (-0.5 * ((bins - wanted[..., None]) / width) ** 2).softmax(-1)
            off = -(near * out.log_softmax(-1)).sum(-1)
        loss: Tensor = off[self.executed(seen, stored)].mean()
        return loss

    def score(self, seen: Seen, stored: Mapping[str, Tensor]) -> Evaluation:
        return self.compare(seen, stored, {})

    def compare(self, seen: Seen, stored: Mapping[str, Tensor], others: Mapping[str, Any]) -> Evaluation:
        out = self._out(seen, self.looks(seen, stored))
        temperature = stored["temperature"][:, None, None]
        with torch.no_grad():
            theirs = {name: other._out(seen, other.looks(seen, stored)) for name, other in others.items()}
        if self.model.head != "gaussian":
            return _categorical(out, stored["actions"], temperature, theirs)
        stds = {name: other.model.log_std.exp() for name, other in others.items()}
        return self._gaussian(out, seen, stored, {name: (theirs[name], stds[name]) for name in others})

    def _gaussian(
        self, mean: Tensor, seen: Seen, stored: Mapping[str, Tensor], others: Mapping[str, tuple[Tensor, Tensor]]
    ) -> Evaluation:
        """Exact conditionals of AR(1) noise: n_t = (a_t - mean_t) / std, n_t | n_{t-1} ~ N(rho n_{t-1}, 1 - rho^2).

        A divergence is between the conditionals too, so over an episode its mean is the divergence of the episodes.
        """
        temperature = stored["temperature"][:, None, None]
        std = self.model.log_std.exp() * temperature
        values, places = stored["actions"], seen.places
        noise = (values - mean) / std
        before = _previous_step(noise, places)
        rho = torch.full_like(noise[..., :1], 0.0 if places is None else self.conditional_rho)
        if places is not None:
            rho[places[:, 1] == 0, 0] = 0.0
        rho = rho * stored["coherent"][:, None, None]  # demonstrations: overlapping chunks, independent steps
        logs = _conditional(noise, before, rho) - std.log()
        spread = std * (1 - rho**2).sqrt()
        entropy = (spread.log() + 0.5 * math.log(2 * math.pi * math.e)).expand_as(logs)
        kl = {}
        for name, (centre, other) in others.items():
            other = other * temperature
            theirs = centre + rho * other * _previous_step((values - centre) / other, places)
            gap = (mean + rho * std * before - theirs) ** 2 / (1 - rho**2)
            kl[name] = (other.log() - std.log() + (gap + std**2) / (2 * other**2) - 0.5).sum(-1)
        return Evaluation(logs.sum(-1), entropy.sum(-1), kl=kl)


def _conditional(noise: Tensor, before: Tensor, rho: Tensor) -> Tensor:
    """Log-density of N(rho * before, 1 - rho^2) at ``noise``, elementwise."""
    spread = (1 - rho**2).sqrt()
    return -0.5 * ((noise - rho * before) / spread) ** 2 - spread.log() - 0.5 * math.log(2 * math.pi)


def _categorical(logits: Tensor, tokens: Tensor, temperature: Tensor, others: Mapping[str, Tensor]) -> Evaluation:
    """Marginal log-probabilities, entropies and divergences of tokens, [N, C*A] each."""
    logs = (logits / temperature[..., None]).log_softmax(-1)
    kl = {}
    for name, other in others.items():
        theirs = (other / temperature[..., None]).log_softmax(-1)
        kl[name] = (logs.exp() * (logs - theirs)).sum(-1).flatten(1)
    entropy = -(logs.exp() * logs).sum(-1)
    return Evaluation(logs.gather(-1, tokens[..., None])[..., 0].flatten(1), entropy.flatten(1), kl=kl)


def _previous_step(noise: Tensor, places: Tensor | None) -> Tensor:
    """Noise [N, C, A] of chunks at (episode, chunk) places [N, 2], one environment step earlier; zeros at a start, and
    of chunks that are evaluated apart."""
    if places is None:
        return torch.zeros_like(noise)
    size, chunks = (int(n) + 1 for n in places.amax(0))
    grid = noise.new_zeros(size, chunks, *noise.shape[1:])
    grid[places[:, 0], places[:, 1]] = noise
    steps = grid.flatten(1, 2)  # [B, S*C, A] in time order
    before = torch.cat([torch.zeros_like(steps[:, :1]), steps[:, :-1]], 1)
    return torch.unflatten(before, 1, (-1, noise.shape[1]))[places[:, 0], places[:, 1]]
