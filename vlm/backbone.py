"""What a token policy asks of a model: read prompts once, then read on from there, row by row.

The two calls are all that rollouts and training need. A prompt and its images are read once for all its completions
(``read``), the result is repeated or thinned out (``rows``), and completions are read on from it (``read_on``), with
or without a graph. Where a model cannot share a prefix, these calls read everything again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Prompt:
    """A question as a model reads it. One object per task: its identity is what completions share.

    Attributes:
        task_id: whose question it is, for messages.
        ids: [P] token ids, image placeholders expanded.
        inputs: what the processor made of the images (pixel_values, image_grid_thw, ...); empty without images.
    """

    task_id: str
    ids: Tensor
    inputs: Mapping[str, Tensor] = field(default_factory=dict)

    def bytes(self) -> int:
        """Of its ids and its pictures."""
        return self.ids.nbytes + sum(values.nbytes for values in self.inputs.values())


@dataclass(eq=False)
class State:
    """What a model has read, one row per sequence.

    Attributes:
        cache: the model's own memory of it.
        mask: [B, L] True where the memory holds a token of the row, False where it holds padding.
        positions: [B] of the next token.
        context: further tensors that reading on needs, first axis B.
    """

    cache: Any
    mask: Tensor
    positions: Tensor
    context: dict[str, Tensor] = field(default_factory=dict)


class Backbone(Protocol):
    """A model with the few calls that a token policy makes. ``hidden`` is what ``head`` turns into logits.

    Attributes:
        module: the model, everything trainable.
        banned: ids that are never sampled and never counted: placeholders of images and videos, padding.
    """

    module: nn.Module
    banned: tuple[int, ...]

    @property
    def device(self) -> torch.device:
        """Where tokens and masks are given, and where hidden states come back."""
        ...

    @property
    def shares(self) -> bool:
        """Whether prefixes can be shared; without it learning calls ``read_whole`` alone, and sampling reads all that
        was said again for every token, behind the same ``read`` and ``read_on``."""
        ...

    def read(self, prompts: Sequence[Prompt]) -> tuple[Tensor, State]:
        """Hidden [M, D] of each prompt's last token, and what was read."""
        ...

    def read_on(self, state: State, tokens: Tensor, mask: Tensor) -> tuple[Tensor, State]:
        """Hidden [B, C, D] at each of C further tokens; mask is False at padding, which stands on the right."""
        ...

    def rows(self, state: State, index: Tensor) -> State:
        """The rows [B] long of a state, repeated or dropped as the index says; gradients flow through.

        The state given can still be read on from."""
        ...

    def read_whole(self, prompts: Sequence[Prompt], tokens: Tensor, mask: Tensor) -> Tensor:
        """Hidden [B, C, D] that predict each of C tokens after their prompts, nothing shared: one prompt per row."""
        ...

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., V]."""
        ...
