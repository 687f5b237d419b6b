"""What the networks of robot policies are given: states, words and what was seen, as one vector."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from ..errors import UsageError, unknown
from ..json_files import as_written, read_object
from ..trainers.lora import has_lora
from .chunk_policy import ChunkPolicy, Seen

if TYPE_CHECKING:
    from .vision import Vision

SETTINGS = "policy.json"

FLOOR = 0.02
"""Least standard deviation that an input is divided by."""

Trunk = Literal["none", "separate", "shared"]
"""What a critic reads: it has layers of its own, or the policy's; "none" is no critic."""


class RobotNetwork(nn.Module, PyTorchModelHubMixin):
    """The part that all networks of this room share. It adds to them ``words`` and, if they look, ``tower``; they have
    a ``body``, which reads the ``context``, and an ``out``.

    Args:
        observation_size: D; action_size: A, every dimension in [-1, 1]; chunk: C steps.
        buckets: hash buckets of the instruction's words (bucket 0 is padding); word_size: their width.
        origin, positions, axes: where positions (of ``axes`` numbers each) begin in an observation. Those in
            ``positions`` are seen relative to ``origin``, which is then left out: a hand-centred view, in which one
            demonstration teaches every place. None sees the observation as it is.
        vision: how frames are looked at; then observations are what the robot feels of itself, and D may be 0. None
            is blind.
    """

    mean: Tensor
    std: Tensor
    body: nn.Sequential
    out: nn.Linear
    critic: nn.Sequential | None

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        chunk: int,
        *,
        buckets: int = 512,
        word_size: int = 32,
        origin: int | None = None,
        positions: Sequence[int] = (),
        axes: int = 3,
        vision: Vision | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.observation_size, self.action_size, self.chunk = observation_size, action_size, chunk
        self.buckets = buckets
        self.inputs: dict[str, Any] = {
            "buckets": buckets,
            "word_size": word_size,
            "origin": origin,
            "positions": list(positions),
        }
        self.inputs["axes"] = axes
        self.origin, self.positions, self.axes = origin, tuple(positions), axes
        size = observation_size - (0 if origin is None else axes)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))
        self.words = nn.EmbeddingBag(buckets, word_size, mode="mean", padding_idx=0)
        self.width = size + word_size
        self.tower, self.vision, self.critic = None, None, None
        if vision is not None:
            from .vision import Tower, Vision

            self.vision = vision if isinstance(vision, Vision) else Vision(**vision)
            self.tower = Tower(self.vision)
            self.width += self.tower.features * max(1, len(self.vision.cameras))

    def context(self, observations: Tensor, words: Tensor, looks: Tensor | None = None) -> Tensor:
        """[N, ``width``] from observations [N, D], word ids [N, L] and, with vision, what ``look`` gave."""
        state = ((self.view(observations) - self.mean) / self.std).clamp(-10, 10)
        parts = [state, self.words(words)]
        if self.tower is not None:
            assert looks is not None
            parts.append(looks)
        return torch.cat(parts, -1)

    @torch.no_grad()
    def renormalise(self, mean: Tensor, std: Tensor, *, keep: bool) -> None:
        """Set the input normalisation [D'] of states as the network sees them.

        Args:
            keep: change the layers that read the states so that the network says of every state what it said before.
        """
        mean, std = mean.to(self.mean), std.clamp(min=FLOOR).to(self.std)
        readers = [*self.body[:1], *(self.critic[:1] if self.critic is not None and self._own_trunk else ())]
        for layer in readers if keep else ():
            read = layer.weight[:, : len(mean)]
            layer.bias += read @ ((mean - self.mean) / self.std)
            read *= std / self.std
        self.mean.copy_(mean)
        self.std.copy_(std)

    def add_critic(self, trunk: Trunk) -> None:
        """Add a head that says what states are worth, zero at first, after ``body`` is there.

        Args:
            trunk: "separate" has layers like the body's, and its gradient goes nowhere else; "shared" reads the body.
        """
        self.inputs["critic"] = trunk
        if trunk == "none":
            return
        if trunk not in ("separate", "shared"):
            raise unknown("critic trunk", trunk, ("none", "separate", "shared"))
        layers = [part for part in self.body if isinstance(part, nn.Linear)]
        width = layers[-1].out_features
        trunks = [] if trunk == "shared" else list(mlp(self.width, width, len(layers))[0])
        head = nn.Linear(width, 1)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        self.critic = nn.Sequential(*trunks, head)

    @property
    def _own_trunk(self) -> bool:
        return bool(self.inputs["critic"] == "separate")

    def value(self, observations: Tensor, words: Tensor, looks: Tensor | None = None) -> Tensor:
        """[N] what states are worth."""
        assert self.critic is not None
        context = self.context(observations, words, looks)
        read = context.detach() if self._own_trunk else self.body(context)
        found: Tensor = self.critic(read)[:, 0]
        return found

    def look(self, frames: Mapping[str, Tensor]) -> Tensor | None:
        """[N, features of all cameras] of frames by camera, [N, H, W, 3] uint8; None without vision."""
        if self.tower is None or self.vision is None:
            return None
        return torch.cat([self.tower(film) for film in self.vision.films(frames)], -1)

    def view(self, observations: Tensor) -> Tensor:
        """Observations [N, D] as the network sees them, before normalisation."""
        if self.origin is None:
            return observations
        seen = observations.clone()
        for place in self.positions:
            seen[:, place : place + self.axes] -= observations[:, self.origin : self.origin + self.axes]
        return torch.cat([seen[:, : self.origin], seen[:, self.origin + self.axes :]], -1)

    def words_of(self, instructions: Sequence[str]) -> Tensor:
        """[N, L] word ids, beside the weights."""
        return word_rows(instructions, self.buckets).to(self.mean.device)

    def normalise_by(self, observations: Tensor, floor: float = FLOOR) -> None:
        """Set the input normalisation from [N, D] observations; ``floor`` keeps constant inputs quiet, and one alone.

        Raises:
            UsageError: none, another D, or numbers that are not finite.
        """
        if observations.ndim != 2 or not len(observations) or observations.shape[1] != self.observation_size:
            raise UsageError(
                f"{len(observations)} observations of {observations.shape[-1]} numbers, and the policy sees "
                f"{self.observation_size}"
            )
        if not bool(observations.isfinite().all()):
            row = int((~observations.isfinite()).any(1).nonzero()[0])
            raise UsageError(f"observation {row} of {len(observations)} to imitate holds NaN or infinity")
        seen = self.view(observations)
        self.mean.copy_(seen.mean(0))
        spread = seen.std(0) if len(seen) > 1 else torch.zeros_like(self.std)
        self.std.copy_(spread.clamp(min=floor))


class NetworkPolicy(ChunkPolicy):
    """The policy of a ``RobotNetwork``: it looks if the network has vision, and is saved with the network.

    With a frozen tower "looks" [S, F] are stored instead of frames.
    """

    network: type[RobotNetwork]
    normalises = True
    saved: tuple[str, ...] = ()
    """Attributes that are saved beside the network: how it explores and what it stores."""

    def __init__(self, model: RobotNetwork, *, decisions: int, dims: int, micro_batch_rows: int | None) -> None:
        vision = model.vision
        super().__init__(
            model,
            chunk=model.chunk,
            action_size=model.action_size,
            decisions=decisions,
            dims=dims,
            sees="states" if vision is None else "frames",
            view=None if vision is None else vision.view,
            micro_batch_rows=micro_batch_rows or (16384 if vision is None else 512),
        )
        if vision is not None and vision.frozen:
            self.freeze_tower()
        if model.critic is not None:
            self.capabilities |= {"values"}

    def freeze_tower(self) -> None:
        """What looks at frames learns no more, and what it sees is stored instead of them.

        Raises:
            ValueError: the network does not look at frames.
        """
        network: RobotNetwork = self.module  # type: ignore[assignment]
        if network.tower is None:
            raise ValueError(f"{self.name} has no vision tower to freeze")
        network.tower.freeze()
        network.vision = network.tower.vision
        self.keeps_frames = False

    def looks(self, seen: Seen, stored: Mapping[str, Tensor]) -> Tensor | None:
        """What the network sees of N frames, as stored or looked at now."""
        if "looks" in stored:
            return stored["looks"]
        network: RobotNetwork = self.module  # type: ignore[assignment]
        return network.look(seen.frames)

    def kept(self, looks: Tensor | None) -> dict[str, Tensor]:
        """What is stored of what was seen."""
        return {} if looks is None or self.keeps_frames else {"looks": looks}

    def add_critic(self, trunk: Trunk) -> None:
        """Give the network a critic, unless it has one (see ``RobotNetwork.add_critic``)."""
        network: RobotNetwork = self.module  # type: ignore[assignment]
        if network.critic is None:
            network.add_critic(trunk)
        self.capabilities |= {"values"} if network.critic is not None else frozenset()

    def start_undecided(self) -> None:
        """Orthogonal weights without biases, times sqrt(2) in hidden layers and .01 in the last, as PPO begins."""
        network: RobotNetwork = self.module  # type: ignore[assignment]
        for name, layer in network.named_modules():
            if isinstance(layer, nn.Linear) and not name.startswith("tower"):
                nn.init.orthogonal_(layer.weight, 0.01 if layer is network.out else math.sqrt(2))
                nn.init.zeros_(layer.bias)
        if network.critic is not None:
            nn.init.zeros_(cast(nn.Linear, network.critic[-1]).weight)

    def values(self, seen: Seen, stored: Mapping[str, Tensor]) -> Tensor:
        network: RobotNetwork = self.module  # type: ignore[assignment]
        return network.value(seen.states, network.words_of(seen.instructions), self.looks(seen, stored))

    def glimpse(self, seen: Seen) -> Mapping[str, Tensor]:
        return {} if self.keeps_frames else self.kept(self.looks(seen, {}))

    def normalise(self, states: Tensor) -> None:
        if "mean" in self.trained():
            self.module.normalise_by(states)  # type: ignore[operator]

    def save_pretrained(self, folder: str | Path) -> None:
        """Weights and config in a folder that ``from_pretrained`` reads; or adapters, which ``load_lora`` reads."""
        if has_lora(self.module):
            super().save_pretrained(folder)
            return
        network: RobotNetwork = self.module  # type: ignore[assignment]
        config = {**cast(dict[str, Any], network._hub_mixin_config), **network.inputs}
        if network.vision is not None:  # the weights are in the folder, no others are to be downloaded
            config["vision"] = asdict(replace(network.vision, pretrained=False))
        network.save_pretrained(str(folder), config=config)
        settings = {name: getattr(self, name) for name in self.saved}
        (Path(folder) / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n")

    @classmethod
    def from_pretrained(cls, name_or_path: str, **policy: Any) -> Self:
        """A policy from a folder or a hub repository; arguments given here replace those it was saved with."""
        with as_written(f"no policy can be made of {name_or_path}"):
            made = cls(cls.network.from_pretrained(name_or_path), **{**_settings(name_or_path), **policy})
        made.pretrained = True
        return made


def _settings(name_or_path: str) -> dict[str, Any]:
    """What a policy was saved with; nothing where only a network was saved."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    place = Path(name_or_path) / SETTINGS
    if not Path(name_or_path).is_dir():
        try:
            place = Path(hf_hub_download(name_or_path, SETTINGS))
        except EntryNotFoundError:
            return {}
    return read_object(place) if place.exists() else {}


def word_rows(instructions: Sequence[str], buckets: int) -> Tensor:
    """[N, L] hash buckets of the words of N instructions, padded with 0."""
    known = {told: row for row, told in enumerate(dict.fromkeys(instructions))}
    rows = torch.nn.utils.rnn.pad_sequence([word_ids(told, buckets) for told in known], batch_first=True)
    return rows[[known[told] for told in instructions]]


def word_ids(instruction: str, buckets: int) -> Tensor:
    """[L] hash buckets of the words, never 0."""
    words = instruction.lower().replace("-", " ").split() or [""]
    return torch.tensor([1 + zlib.crc32(word.encode()) % (buckets - 1) for word in words])


def mlp(width: int, hidden: int, layers: int) -> tuple[nn.Sequential, int]:
    """``layers`` of ``hidden`` SiLU units, and their width."""
    blocks: list[nn.Module] = []
    for _ in range(layers):
        blocks += [nn.Linear(width, hidden), nn.SiLU()]
        width = hidden
    return nn.Sequential(*blocks), width
