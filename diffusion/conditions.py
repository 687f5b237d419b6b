"""What denoisers are told of prompts, encoded once and kept on the CPU up to a limit in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from .pipelines import PipelineAdapter
from .pipelines.base import Condition

LIMIT = 2 * 2**30
"""Bytes of rows kept in all: some 16,000 prompts of Stable Diffusion 1.5 in bfloat16, 500 of FLUX."""


class Conditions:
    """Rows of prompts; None is the negative prompt.

    A prompt is encoded by itself, so that what it gives does not depend on its company, and again when its row was
    dropped: the one that was not asked for the longest goes first.

    Attributes:
        held: bytes of the rows that are kept; what one call asks for is kept whatever its size.
    """

    def __init__(self, adapter: PipelineAdapter, limit: int = LIMIT) -> None:
        self.adapter, self.limit, self.held = adapter, limit, 0
        self._rows: OrderedDict[str, Condition] = OrderedDict()
        self._negative: Condition | None = None

    def __call__(self, prompts: Sequence[str | None]) -> dict[str, Tensor]:
        """Conditions [B, ...] on the denoiser's device."""
        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
        with self.adapter.encoding() if self._lacks(places) else nullcontext():
            rows = [self._row(prompt) for prompt in places]
        while self.held > self.limit and self._rows:
            self.held -= _bytes(self._rows.popitem(last=False)[1])
        chosen = torch.tensor([places[prompt] for prompt in prompts], device=self.adapter.device)
        told = self.adapter.stacked(rows)
        return {name: tensor.to(self.adapter.device)[chosen] for name, tensor in told.items()}

    def _lacks(self, prompts: Iterable[str | None]) -> bool:
        return any(self._negative is None if prompt is None else prompt not in self._rows for prompt in prompts)

    def _row(self, prompt: str | None) -> Condition:
        with torch.no_grad(), torch.autocast(self.adapter.device.type, enabled=False):
            if prompt is None:
                if self._negative is None:
                    self._negative = {name: rows[0] for name, rows in self.adapter.unconditional(1).items()}
                return self._negative
            if prompt in self._rows:
                self._rows.move_to_end(prompt)
                return self._rows[prompt]
            row = {name: rows[0].cpu() for name, rows in self.adapter.encode([prompt]).items()}
        self._rows[prompt] = row
        self.held += _bytes(row)
        return row


def _bytes(row: Condition) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in row.values())
