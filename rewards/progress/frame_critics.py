"""Progress critics that look at frames, learned from a few demonstrations.

A small convolutional network sees a frame and how it differs from the episode's first one: the difference
shows what was moved. Frames of demonstrations teach it progress; it also learns from what lies off their
path. Time run backwards (pairwise critics) and another task's instruction are negatives without a doubt.
Frames of *play*, recorded from the policy or from random actions, are not: some of them may show success. They
count as no progress with a small weight, as in learning from positive and unlabelled examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ...errors import UsageError
from ...fitting import cosine, fit
from ...numbers import Floats
from .ensemble import Ensemble


@dataclass(frozen=True)
class FrameTraining:
    """Attributes:
    members: networks of the ensemble; their mean is the estimate.
    steps, batch, lr, weight_decay, dropout: of each member's training by AdamW.
    size: pixels along a side that frames are reduced to.
    width: channels after the first convolution.
    shift: pixels of ``size`` by which frames are shifted at random, as in DrQ (arXiv 2004.13649).
    mismatched: share of the demonstrations' frames that get another task's instruction and no progress.
    play: weight of all play frames together, the demonstrations' frames weighing 1.
    settled: share of the demonstration's settling steps after which progress is complete.
    """

    members: int = 2
    steps: int = 400
    batch: int = 32
    lr: float = 1e-3
    weight_decay: float = 1e-2
    dropout: float = 0.3
    size: int = 32
    width: int = 24
    shift: int = 2
    mismatched: float = 0.15
    play: float = 0.1
    settled: float = 0.5
    seed: int = 0


class FrameCritic(Ensemble):
    """An ensemble of small convolutional networks that estimate progress from frames.

    Args:
        kind: "absolute", 0..1, or "pairwise", -1..1, as :class:`~.critics.ProgressCritic`.
    """

    sees: Literal["frames"] = "frames"

    def __init__(self, kind: Literal["absolute", "pairwise"] = "absolute", training: FrameTraining | None = None):
        self.kind: Literal["absolute", "pairwise"] = kind
        self.training = training or FrameTraining()
        self.instructions: dict[str, int] = {}
        self.members: list[nn.Module] = []

    @property
    def families(self) -> frozenset[str]:
        return frozenset({f"demonstrations:{self.kind} network of frames"})

    def fit(self, demonstrations: Sequence[Any], play: Sequence[Any] = ()) -> float:
        """Learn; returns the last loss.

        Args:
            demonstrations: ``frames`` uint8 [M, H, W, 3] at every step or at chunk ends, ``instruction``, and
                ``settle`` in steps of ``observations`` [N+1, D].
            play: episodes with ``frames`` and ``instruction``; those of other instructions are left out.

        Raises:
            ValueError: no demonstrations, or frames are missing or none.
        """
        if not demonstrations:
            raise ValueError("a critic learns from one demonstration or more")
        self.instructions = {text: i for i, text in enumerate(dict.fromkeys(d.instruction for d in demonstrations))}
        shown = self._frames(demonstrations)
        progress = torch.cat([_progress(d, self.training.settled) for d in demonstrations]).to(self.device)
        known = [episode for episode in play if episode.instruction in self.instructions]
        played = self._frames(known) if known else None
        self.members, loss = [], 0.0
        for member in range(self.training.members):
            loss = self._fit_member(shown, progress, played, self.training.seed * 1000 + member)
        return loss

    def _frames(self, episodes: Sequence[Any]) -> _Frames:
        return _Frames.of(episodes, self.instructions, self.training.size, self.device)

    def _fit_member(self, shown: _Frames, progress: Tensor, played: _Frames | None, seed: int) -> float:
        how, random = self.training, torch.Generator().manual_seed(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = _Network(self.kind, len(self.instructions), how).to(self.device)

            def both(_: int) -> Tensor:
                loss = self._loss(network, shown, progress, random)
                if played is None or how.play <= 0:
                    return loss
                return loss + how.play * self._loss(network, played, played.now.new_zeros(len(played.now)), random)

            loss = fit(network, both, cosine(how.lr, how.steps), weight_decay=how.weight_decay)
        self.members.append(network.eval())
        return loss

    def _loss(self, network: _Network, frames: _Frames, progress: Tensor, random: torch.Generator) -> Tensor:
        how = self.training
        episode = torch.randint(len(frames.starts), (how.batch,), generator=random)  # each counts the same
        rows = frames.draw(episode, random)
        target, text = progress[rows], frames.instruction[rows]
        kinds = len(self.instructions)
        wrong = torch.rand(how.batch, generator=random) < (how.mismatched if kinds > 1 else 0.0)
        text = torch.where(
            wrong, (text + torch.randint(1, max(kinds, 2), (how.batch,), generator=random)) % kinds, text
        ).to(self.device)
        wrong = wrong.to(self.device)
        shifts = torch.randint(0, 2 * how.shift + 1, (how.batch, 2), generator=random)
        first = _shifted(frames.first[frames.episode[rows]], shifts, how.shift)
        inputs = [_shifted(frames.now[rows], shifts, how.shift)]
        if self.kind == "absolute":
            target = torch.where(wrong, 0.0, target)
            return functional.binary_cross_entropy_with_logits(network(inputs, first, text), target)
        earlier = frames.draw(episode, random)
        inputs.insert(0, _shifted(frames.now[earlier], shifts, how.shift))
        advance = (target - progress[earlier]) / (1 - progress[earlier]).clamp(min=0.05)
        target = torch.where(wrong, 0.0, advance.clamp(-1, 1))
        return functional.mse_loss(network(inputs, first, text).tanh(), target)

    @torch.no_grad()
    def __call__(
        self,
        observations: NDArray[np.uint8],
        initial: NDArray[np.uint8],
        instructions: Sequence[str],
        references: NDArray[np.uint8] | None = None,
    ) -> Floats:
        """Estimates [N] for frames uint8 [N, H, W, 3] of episodes that began at ``initial``."""
        unknown = [text for text in instructions if text not in self.instructions]
        if unknown:
            raise UsageError(
                f"the critic has no demonstration of {unknown[0]!r}: show it one, or take one that needs none"
            )
        if self.kind == "pairwise" and references is None:
            raise ValueError("a pairwise critic needs references")
        size, device = self.training.size, self.device
        text = torch.tensor([self.instructions[text] for text in instructions]).to(device)
        first, inputs = _reduced(initial, size, device), [_reduced(observations, size, device)]
        if self.kind == "pairwise":
            inputs.insert(0, _reduced(references, size, device))
        outs = torch.stack([member(inputs, first, text) for member in self.members])
        result: Floats = (outs.sigmoid() if self.kind == "absolute" else outs.tanh()).mean(0).cpu().numpy()
        return result

    def state_dict(self) -> dict[str, Any]:
        return {"instructions": dict(self.instructions), "members": self.states()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.instructions = {str(k): int(v) for k, v in state["instructions"].items()}
        made = (self.kind, len(self.instructions), self.training)
        self.members = [self.restored(_Network(*made), weights) for weights in state["members"]]


class _Network(nn.Module):
    """Frames and their differences from the first one through one tower, gated by the instruction, and a head.

    The gates make which task goes with which frames a product, which a few hundred steps learn; as further
    inputs of the head instructions were ignored.
    """

    def __init__(self, kind: str, instructions: int, how: FrameTraining) -> None:
        super().__init__()
        width, side = how.width, -(-how.size // 8)
        self.tower = nn.Sequential(
            nn.Conv2d(6, width, 3, 2, 1),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, 2, 1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Dropout(how.dropout),
            nn.Linear(2 * width * side * side, 64),
            nn.SiLU(),
        )
        pieces = 1 if kind == "absolute" else 2
        self.gates = nn.Embedding(instructions, 64)
        self.head = nn.Sequential(nn.Linear(64 * pieces, 64), nn.SiLU(), nn.Linear(64, 1))

    def forward(self, frames: Sequence[Tensor], first: Tensor, text: Tensor) -> Tensor:
        gate = self.gates(text)
        seen = [gate * self.tower(torch.cat([frame - 0.5, 3 * (frame - first)], 1)) for frame in frames]
        out: Tensor = self.head(torch.cat(seen, -1))[:, 0]
        return out


@dataclass(eq=False)
class _Frames:
    """Frames of several episodes: [M, 3, S, S] in 0..1, of which episode, its first frame and instruction.

    Frames stand on the critic's device; what they are looked up by, on the CPU.
    """

    now: Tensor
    first: Tensor
    episode: Tensor
    starts: Tensor
    lengths: Tensor
    instruction: Tensor

    @classmethod
    def of(cls, episodes: Sequence[Any], instructions: Mapping[str, int], size: int, device: torch.device) -> _Frames:
        clips = [_reduced(_frames_of(episode), size, device) for episode in episodes]
        lengths = torch.tensor([len(clip) for clip in clips])
        episode = torch.cat([torch.full((len(clip),), index) for index, clip in enumerate(clips)])
        text = torch.tensor([instructions[episode.instruction] for episode in episodes])[episode]
        firsts = torch.stack([clip[0] for clip in clips])
        return cls(torch.cat(clips), firsts, episode, lengths.cumsum(0) - lengths, lengths, text)

    def draw(self, episode: Tensor, random: torch.Generator) -> Tensor:
        """A row of each of these episodes."""
        return self.starts[episode] + (torch.rand(len(episode), generator=random) * self.lengths[episode]).long()


def _frames_of(episode: Any) -> NDArray[np.uint8]:
    if getattr(episode, "frames", None) is None:
        raise ValueError(f"an episode of {episode.instruction!r} has no frames: render it")
    frames: NDArray[np.uint8] = np.asarray(episode.frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames are uint8 [M, H, W, 3], not {frames.dtype} {list(frames.shape)}")
    return frames


def _progress(demonstration: Any, settled: float) -> Tensor:
    """[M] share of the time until it had settled."""
    frames, steps = len(_frames_of(demonstration)) - 1, len(demonstration.observations) - 1
    settling = demonstration.settle * frames / max(steps, 1)
    done = max(frames - (1 - settled) * settling, 1.0)
    progress: Tensor = (torch.arange(frames + 1) / done).clamp(max=1.0)
    return progress


def _reduced(frames: Any, size: int, device: torch.device) -> Tensor:
    """uint8 [N, H, W, 3] -> float [N, 3, size, size] in 0..1 on a device, to which bytes travel and not floats."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).to(device).permute(0, 3, 1, 2).float() / 255
    reduced: Tensor = functional.adaptive_avg_pool2d(pixels, size)
    return reduced


def _shifted(frames: Tensor, shifts: Tensor, most: int) -> Tensor:
    """Each frame moved by its own shift [N, 2] in 0..2 * most, edges repeated."""
    padded = functional.pad(frames, (most,) * 4, mode="replicate")
    span = torch.arange(frames.shape[-1])
    rows, columns = shifts[:, :1] + span, shifts[:, 1:] + span
    moved: Tensor = padded[torch.arange(len(frames))[:, None, None], :, rows[:, :, None], columns[:, None]]
    return moved.permute(0, 3, 1, 2)
