"""A vision-language model of 180 thousand parameters that looks where it points.

Too small to learn from raw attention alone which patch a word means, it is given two things: a token that names a cell
carries a glimpse of that cell's patch, and a match map says how well each patch fits each word of the question, by the
model's own vision. Both made the difference between reading a picture and guessing in trials of this size.

It is a transformers model like any other: saved, loaded and found by ``AutoModelForImageTextToText``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from ...envs.toys.scenes import ATTRIBUTES, CELLS, DIRECTIONS, KINDS, ORDINALS, PIXELS, SIDE

IMAGE, PAD, END = "<image>", "<pad>", "<eos>"
NUMBERS = tuple(str(n) for n in range(13))
QUESTION_WORDS = ("what", "is", "of", "then", "how", "many", "or", "far", "to", "which", "odd", "where")
ROLE_WORDS = ("=", "yes", "no", "check", "again", "describe", "change", "from", "into", "moved", "gone", "new")
CELL_WORDS = tuple(f"p{cell}" for cell in range(CELLS))
WORDS = (
    *(PAD, END, IMAGE),
    *CELL_WORDS,
    *KINDS,
    *ATTRIBUTES,
    *NUMBERS,
    *DIRECTIONS,
    *ORDINALS,
    *QUESTION_WORDS,
    *ROLE_WORDS,
)
"""The vocabulary; an id is a word's place."""
IDS = {word: i for i, word in enumerate(WORDS)}

KeysValues = list[tuple[Tensor, Tensor]]


class GlimpseConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """Sizes of a GlimpseModel."""

    model_type = "glimpse"

    hidden_size: int = 64
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    intermediate_size: int = 192
    max_prompt: int = 40
    max_completion: int = 48
    dropout: float = 0.1
    frozen_vision: bool = True
    vocab_size: int = len(WORDS)


@dataclass(eq=False)
class Memory:
    """Keys and values per layer [B, H, L, D/H], and the patches [B, 16, D] that later glimpses look at."""

    keys_values: KeysValues
    patches: Tensor


class Words(nn.Module):
    """Word embeddings, built from parts: a kind is its colour plus its shape, a cell its row plus its column.

    ``table()`` is [V, D]; the output layer and the vision head are tied to it.
    """

    parts: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        names = [word for word in WORDS if "_" not in word]
        names += [f"row{i}" for i in range(SIDE)] + [f"column{i}" for i in range(SIDE)]
        place = {name: i for i, name in enumerate(names)}
        parts = torch.zeros(len(WORDS), len(names))
        for i, word in enumerate(WORDS):
            for part in word.split("_") if word in KINDS else [word]:
                parts[i, place[part]] = 1.0
            if word in CELL_WORDS:
                cell = int(word[1:])
                parts[i, place[f"row{cell // SIDE}"]] = parts[i, place[f"column{cell % SIDE}"]] = 1.0
        self.register_buffer("parts", parts)
        self.weight = nn.Parameter(0.1 * torch.randn(len(names), size))

    def table(self) -> Tensor:
        return self.parts @ self.weight


class Block(nn.Module):
    """Attention and a feed-forward layer, both on normalised input."""

    def __init__(self, config: GlimpseConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.heads = config.num_attention_heads
        self.norm1, self.norm2 = nn.RMSNorm(size, eps=1e-6), nn.RMSNorm(size, eps=1e-6)
        self.qkv, self.out = nn.Linear(size, 3 * size, bias=False), nn.Linear(size, size, bias=False)
        self.up, self.down = nn.Linear(size, config.intermediate_size), nn.Linear(config.intermediate_size, size)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None, mask: Tensor) -> tuple[Tensor, Any]:
        batch, length, size = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, size // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.drop(self.out(seen.transpose(1, 2).reshape(batch, length, size)))
        x = x + self.drop(self.down(F.gelu(self.up(self.norm2(x)))))
        return x, (key, value)


class GlimpseModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Picture and question are read in both directions, what follows them from left to right.

    ``input_ids`` begin with one image placeholder per cell, as a transformers processor would expand it.
    """

    config_class = GlimpseConfig
    main_input_name = "input_ids"
    fits: Tensor
    content: Tensor
    cells: Tensor

    def __init__(self, config: GlimpseConfig) -> None:
        super().__init__(config)
        size = config.hidden_size
        self.words = Words(size)
        self.see = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(32, size, PIXELS // 2),
            nn.Flatten(),
        )
        self.seen = nn.LayerNorm(size)
        self.patch, self.glimpse = nn.Linear(size, size), nn.Linear(size, size)
        self.mark = nn.Parameter(0.5 * torch.randn(3, size))
        self.prompt_places = nn.Parameter(0.1 * torch.randn(config.max_prompt, size))
        self.completion_places = nn.Parameter(0.1 * torch.randn(config.max_completion, size))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(size, eps=1e-6)
        self.drop = nn.Dropout(config.dropout)
        fits = torch.zeros(len(KINDS), len(WORDS))
        for i, kind in enumerate(KINDS):
            for word in (kind, *kind.split("_")):
                fits[i, IDS[word]] = 1.0
        fits[0] = 0.0
        self.register_buffer("fits", fits)
        self.register_buffer("content", fits.any(0).long())
        cells = torch.full((len(WORDS),), -1)
        cells[[IDS[word] for word in CELL_WORDS]] = torch.arange(CELLS)
        self.register_buffer("cells", cells)
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    # seeing

    def look(self, pixels: Tensor) -> Tensor:
        """[B, 16, D] of pictures [B, 32, 32, 3] in 0..255."""
        x = (pixels.to(self.mark.dtype) - 128.0) / 64.0
        x = x.view(-1, SIDE, PIXELS, SIDE, PIXELS, 3).permute(0, 1, 3, 5, 2, 4).reshape(-1, 3, PIXELS, PIXELS)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.frozen_vision):
            features: Tensor = self.seen(self.see(x)).view(len(pixels), CELLS, -1)
        return features

    def kinds(self, patches: Tensor) -> Tensor:
        """[B, 16, 19] log-probabilities of what each cell holds."""
        table = self.words.table()[IDS[KINDS[0]] : IDS[KINDS[0]] + len(KINDS)]
        logits = patches @ table.T * (4.0 * patches.shape[-1] ** -0.5)
        log_probs: Tensor = logits.log_softmax(-1)
        return log_probs

    # reading

    def read(self, input_ids: Tensor, pixels: Tensor, mask: Tensor) -> tuple[Tensor, Memory]:
        """Hidden [B, P, D] of prompts (placeholders, then words, padding on the right), and their memory."""
        patches = self.look(pixels)
        table = self.words.table()
        words, held = input_ids[:, CELLS:], mask[:, CELLS:]
        # Vision is not trained through the map: pointing must not change what a patch looks like.
        fit = self.kinds(patches).exp().detach() @ self.fits[:, words.flatten()].view(len(KINDS), *words.shape).permute(
            1, 0, 2
        )
        fit = fit * held[:, None]
        content = self.content[words] * held
        order = (content.cumsum(-1) - 1).clamp(0, 2)
        cells = 5.0 * table[IDS["p0"] : IDS["p0"] + CELLS]
        picture = self.patch(patches) + cells + torch.einsum("bkq,bqd->bkd", fit, self.mark[order] * content[..., None])
        asked = self._embed(words, patches, table) + self.prompt_places[: words.shape[1]]
        asked = asked + torch.einsum("bkq,kd->bqd", fit, cells)
        x = self.drop(torch.cat([picture, asked], 1))
        memory: KeysValues = []
        for block in self.blocks:
            x, kept = block(x, None, mask[:, None, None, :])
            memory.append(kept)
        return self.norm(x), Memory(memory, patches)

    def read_on(self, memory: Memory, tokens: Tensor, allowed: Tensor, places: Tensor) -> tuple[Tensor, Memory]:
        """Hidden [B, C, D] of further tokens at places [B, C]; ``allowed`` [B, C, L + C] is what each sees."""
        x = self._embed(tokens, memory.patches, self.words.table()) + self.completion_places[places]
        x = self.drop(x)
        kept: KeysValues = []
        for block, past in zip(self.blocks, memory.keys_values, strict=True):
            x, now = block(x, past, allowed[:, None])
            kept.append(now)
        return self.norm(x), Memory(kept, memory.patches)

    def head(self, hidden: Tensor) -> Tensor:
        """[..., V]"""
        logits: Tensor = 2.0 * hidden @ self.words.table().T
        return logits

    def _embed(self, ids: Tensor, patches: Tensor, table: Tensor) -> Tensor:
        """Words, and for those that name a cell a glimpse of it."""
        cell = self.cells[ids]
        looked = self.glimpse(patches).gather(1, cell.clamp(min=0)[..., None].expand(-1, -1, patches.shape[-1]))
        embedded: Tensor = 5.0 * table[ids] + looked * (cell >= 0)[..., None]
        return embedded

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutput:
        """Logits [B, L, V], nothing shared. ``token_type_ids`` is 0 in the prompt and 1 after it; prompts of a batch
        are as long as the longest, with ``attention_mask`` 0 at their padding."""
        kinds = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        held = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        prompt = int((kinds == 0).sum(-1).max())
        hidden, memory = self.read(input_ids[:, :prompt], pixel_values, held[:, :prompt].bool())
        if input_ids.shape[1] > prompt:
            later = input_ids[:, prompt:]
            places = torch.arange(later.shape[1], device=later.device).expand_as(later)
            allowed = causal(held[:, :prompt].bool(), held[:, prompt:].bool())
            hidden = torch.cat([hidden, self.read_on(memory, later, allowed, places)[0]], 1)
        logits = self.head(hidden)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        return CausalLMOutput(loss=cast(Any, loss), logits=cast(Any, logits))


def causal(before: Tensor, now: Tensor) -> Tensor:
    """[B, C, L + C] bool: each of C tokens sees what is held of L before, and of the C those up to itself."""
    count = now.shape[1]
    triangle = torch.ones(count, count, dtype=torch.bool, device=now.device).tril()
    return torch.cat([before[:, None].expand(-1, count, -1), triangle & now[:, None]], -1)


AutoConfig.register("glimpse", GlimpseConfig)
AutoModelForImageTextToText.register(GlimpseConfig, GlimpseModel)
