"""The small model behind the token policy: prompts read once, completions read on from copies of that memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ...envs.toys.scenes import CELLS, PIXELS, SIDE
from ...errors import UsageError
from ...types import Task
from ..backbone import Prompt, State
from ..processing import PIXEL_LIMIT, as_pil
from ..renderer import Renderer
from .glimpse import END, IDS, IMAGE, PAD, WORDS, GlimpseModel, Memory, causal

if TYPE_CHECKING:
    from ..policy import TokenPolicy


class GlimpseBackbone:
    """``Backbone`` of a GlimpseModel; ``state.positions`` counts completion tokens from 0."""

    shares = True
    module: nn.Module

    def __init__(self, model: GlimpseModel) -> None:
        self.module = self.model = model
        self.banned: tuple[int, ...] = (IDS[PAD], IDS[IMAGE])

    @property
    def device(self) -> torch.device:
        return self.model.device

    def read(self, prompts: Sequence[Prompt]) -> tuple[Tensor, State]:
        ids, mask, pixels = self._batch(prompts)
        hidden, memory = self.model.read(ids, pixels, mask)
        last = mask.sum(-1) - 1
        positions = torch.zeros(len(prompts), dtype=torch.long, device=ids.device)
        return hidden[torch.arange(len(prompts), device=ids.device), last], State(memory, mask, positions)

    def read_on(self, state: State, tokens: Tensor, mask: Tensor) -> tuple[Tensor, State]:
        steps = torch.arange(tokens.shape[1], device=tokens.device)
        places = (state.positions[:, None] + steps).clamp(max=len(self.model.completion_places) - 1)
        hidden, memory = self.model.read_on(state.cache, tokens, causal(state.mask, mask), places)
        after = state.positions + mask.sum(-1)
        return hidden, State(memory, torch.cat([state.mask, mask], 1), after)

    def rows(self, state: State, index: Tensor) -> State:
        index = index.to(state.mask.device)
        memory: Memory = state.cache
        chosen = Memory([(k[index], v[index]) for k, v in memory.keys_values], memory.patches[index])
        return State(chosen, state.mask[index], state.positions[index])

    def read_whole(self, prompts: Sequence[Prompt], tokens: Tensor, mask: Tensor) -> Tensor:
        hidden, state = self.read(prompts)
        later, _ = self.read_on(state, tokens[:, :-1], mask[:, :-1])
        return torch.cat([hidden[:, None], later], 1)

    def head(self, hidden: Tensor) -> Tensor:
        return self.model.head(hidden)

    def _batch(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor, Tensor]:
        device = self.model.device
        most = len(self.model.prompt_places)
        for prompt in prompts:
            if len(prompt.ids) - CELLS > most:
                asked = len(prompt.ids) - CELLS
                raise UsageError(f"task {prompt.task_id} has {asked} words: the small model reads {most} at most")
        ids = pad_sequence([prompt.ids for prompt in prompts], batch_first=True, padding_value=IDS[PAD])
        pixels = torch.stack([prompt.inputs["pixel_values"] for prompt in prompts])
        return ids.to(device), (ids != IDS[PAD]).to(device), pixels.to(device)


class GlimpseRenderer(Renderer):
    """Words of the small world, separated by spaces; one picture of 32 x 32 pixels per question: uint8 [32, 32, 3], or
    whatever ``processing.as_pil`` opens."""

    sees = True

    def __init__(self) -> None:
        super().__init__([IDS[END]])

    def prompt(self, task: Task) -> Prompt:
        side = SIDE * PIXELS
        if len(task.images) != 1:
            raise UsageError(f"task {task.id} has {len(task.images)} images: the small model takes one")
        picture = task.images[0]
        if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8:
            picture = np.array(as_pil(picture, f"task {task.id}: image 1", PIXEL_LIMIT))
        if picture.shape != (side, side, 3):
            raise UsageError(f"task {task.id}: the small model takes {side} x {side} RGB pictures, not {picture.shape}")
        ids = [IDS[IMAGE]] * CELLS + self._said(str(task.prompt), task.id)
        return Prompt(task.id, torch.tensor(ids), {"pixel_values": torch.from_numpy(np.ascontiguousarray(picture))})

    def tokens(self, text: str) -> Tensor:
        return torch.tensor([*self._said(text, "an answer"), IDS[END]])

    def text(self, ids: Tensor) -> str:
        words = (WORDS[i] for i in ids.tolist())
        return " ".join(word for word in words if word not in (PAD, END, IMAGE))

    def _said(self, text: str, whose: str) -> list[int]:
        """Ids of what somebody said; the model's own marks are no words of theirs."""
        return self.words(" ".join(f"{word}?" if word in (PAD, END, IMAGE) else word for word in text.split()), whose)

    def words(self, text: str, whose: str = "an item") -> list[int]:
        """Ids of a text's words. Raises UsageError naming whose word it does not know."""
        unknown = [word for word in text.split() if word not in IDS]
        if unknown:
            raise UsageError(f"{whose}: the small model does not know the word {unknown[0]!r}")
        return [IDS[word] for word in text.split()]


def glimpse_policy(folder: str | Path, **options: Any) -> TokenPolicy:
    """The policy of a saved small model; ``options`` are TokenPolicy's."""
    from ..policy import TokenPolicy

    model = GlimpseModel.from_pretrained(folder)
    model.eval()  # type: ignore[no-untyped-call]
    for part in (model.see, model.seen):
        part.requires_grad_(False)
    return TokenPolicy(GlimpseBackbone(model), GlimpseRenderer(), **{"horizon": 14, **options})
