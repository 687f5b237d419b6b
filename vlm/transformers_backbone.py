"""Any transformers model that continues text, with or without images, behind the few calls of a token policy.

A prompt and its images are read once; its keys and values are repeated for its completions. This needs a model whose
memory is keys and values of every token. The first use of a model tries it on six tokens: where reading in two parts
does not give what reading at once gives (sliding windows, linear attention, unknown forwards), ``shares`` is False,
the log says why, and every completion is read with its prompt, which is slower and as exact.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from functools import cached_property
from typing import Any, Self, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from ..errors import UsageError
from .backbone import Prompt, State
from .checkpointing import layers_of, lent, recomputed
from .keeping import FeatureCache
from .memory import Fold, Memory, Said, again, picked, picker, unfolded
from .renderer import Features, Renderer

log = logging.getLogger(__name__)


class TransformersBackbone:
    """A transformers model, image-text-to-text or causal, possibly with PEFT adapters.

    Args:
        model: with a head; positions are given explicitly, so state that a model stores (Qwen's rope deltas) is unused.
        renderer: of the model's family, which knows its quirks; policies share it with their forks.
        feature_bytes: limit of the features that are kept while the vision tower is frozen; 0 keeps none.
        checkpointing: share of the layers that are recomputed in the backward pass.
    """

    def __init__(
        self, model: nn.Module, renderer: Renderer, *, feature_bytes: int = 2**30, checkpointing: float = 0.0
    ) -> None:
        self.module, self.renderer = model, renderer
        self.banned = tuple(sorted(set(renderer.banned)))
        self.features = FeatureCache(feature_bytes)
        self.checkpointing = checkpointing
        self._positions: WeakKeyDictionary[Prompt, Tensor] = WeakKeyDictionary()
        self._shares: bool | None = None
        self._plain_head: bool | None = None
        self._lean = False
        layers_of(self.base, checkpointing)  # refused at once where they are not known

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        other = object.__new__(type(self))
        memo[id(self)] = other
        own = {"module": deepcopy(self.module, memo), "_positions": WeakKeyDictionary()}
        parts = {name for name, kind in vars(type(self)).items() if isinstance(kind, cached_property)}
        other.__dict__ |= {name: value for name, value in vars(self).items() if name not in parts} | own
        towers = zip(self.vision_parameters(), other.vision_parameters(), strict=True)
        if not all(mine is theirs for mine, theirs in towers):  # versions of other weights say nothing
            other.features = FeatureCache(self.features.limit)
        return other

    # --- parts of the model ----------------------------------------------------------------------

    @cached_property
    def inner(self) -> Any:
        """The model itself, below PEFT's wrapper if it has one."""
        model: Any = self.module
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    @cached_property
    def base(self) -> Any:
        """Everything but the head."""
        return self.inner.base_model

    @cached_property
    def decoder(self) -> Any:
        """What reads text: the base model, or its language model where there is vision beside it."""
        return self.inner.get_decoder()

    @cached_property
    def output_layer(self) -> Any:
        return self.inner.get_output_embeddings()

    @property
    def device(self) -> torch.device:
        """Where tokens are read, and where hidden states come back to from a model spread over several devices."""
        device: torch.device = self.inner.get_input_embeddings().weight.device
        return device

    def vision_parameters(self) -> list[nn.Parameter]:
        """Those of the base model outside the decoder: the tower and what projects its features."""
        text = {id(parameter) for parameter in self.decoder.parameters()}
        return [parameter for parameter in self.base.parameters() if id(parameter) not in text]

    # --- whether a prefix can be shared ----------------------------------------------------------

    @property
    def shares(self) -> bool:
        if self._shares is None:
            self._try_out()
        return bool(self._shares)

    def _try_out(self) -> None:
        """Read six tokens in one part and in two, once, and look whether the head is the linear layer it seems."""
        vocabulary = self.inner.get_input_embeddings().weight.shape[0]
        usable = [i for i in range(1, vocabulary) if i not in self.banned][:: max(1, vocabulary // 8)][:6]
        ids = torch.tensor(usable * 6)[None, :6]
        prompt, further = Prompt("trial", ids[0, :3]), ids[:, 3:].to(self.device)
        inputs, _, _ = self._inputs([prompt], ids[:, 3:], torch.ones(1, 3, dtype=torch.bool))
        was_training = self.module.training
        self.module.eval()
        try:
            # Half precision would round more than weights in full precision explain.
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                whole = self.base(**inputs, use_cache=False).last_hidden_state
                logits = self.inner(**inputs, use_cache=False).logits
                self._plain_head = _close(self._linear_head(whole), logits)
                reason = (
                    "its head is no linear layer" if not self._plain_head else self._why_not(prompt, further, whole)
                )
        finally:
            self.module.train(was_training)
        self._shares = reason is None
        if reason is not None:
            name = type(self.inner).__name__
            log.warning("%s cannot share prompts (%s): every completion is read with its prompt", name, reason)

    def _why_not(self, prompt: Prompt, further: Tensor, whole: Tensor) -> str | None:
        if not self.renderer.shares:
            return f"{type(self.renderer).__name__} says so"
        kinds = {type(layer) for layer in self._new_cache().layers} - {DynamicLayer}
        if kinds:
            return f"it remembers in {', '.join(sorted(kind.__name__ for kind in kinds))}"
        twice, all_said = torch.tensor([0, 0]), torch.ones(2, 3, dtype=torch.bool, device=self.device)
        try:
            first, state = self._read_once([prompt])
            copies = self.rows(state, twice)
            later, _ = self._go_on(copies, further[[0, 0]], all_said)
        except Exception as error:  # an unknown forward may fail in any way; the slow path remains
            return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if not (_close(first, whole[:, 2]) and _close(later[1], whole[0, 3:])):
            return "reading in two parts gives something else"
        self._lean = self._walks(copies, further[[0, 0], :1], all_said[:, :1], whole[0, 3])
        return None

    def _walks(self, copies: Memory, tokens: Tensor, mask: Tensor, wanted: Tensor) -> bool:
        """Whether the decoder is its layers one after the other."""
        if copies.fold is None:
            return False
        self._lean = True
        try:
            hidden, _ = self._go_on(copies, tokens, mask)
        except Exception:  # then it is not
            return False
        return _close(hidden[1, 0], wanted)

    # --- reading ---------------------------------------------------------------------------------

    def read(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Memory]:
        """Hidden [M, D] of each prompt's last token, and what was read."""
        if self.shares:
            return self._read_once(prompts)
        nothing = torch.zeros(len(prompts), 0, dtype=torch.long)
        said = Said(list(prompts), nothing, nothing.bool())
        return self._say(said, torch.zeros(len(prompts), 0, dtype=torch.long), nothing.bool())

    def _say(self, said: Said, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Memory]:
        """Everything read again, for a model that cannot share: hidden [B, D] at the prompt's end, or [B, C, D]."""
        after = Said(said.prompts, torch.cat([said.tokens, tokens.cpu()], 1), torch.cat([said.mask, mask.cpu()], 1))
        # Windows count places, so that no padding may stand between tokens.
        order = after.mask.int().argsort(dim=1, descending=True, stable=True)
        one = torch.zeros(len(said.prompts), 1, dtype=torch.long)
        moved, held = (torch.cat([values.gather(1, order), one.to(values)], 1) for values in (after.tokens, after.mask))
        hidden = self.read_whole(after.prompts, moved, held)
        state = Memory(after, after.mask, after.mask.sum(1), padded=True)
        if not tokens.shape[1]:
            return hidden[:, 0], state
        back = 1 + order.argsort(1)[:, -tokens.shape[1] :].to(hidden.device)
        return hidden.gather(1, back[..., None].expand(-1, -1, hidden.shape[-1])), state

    def _read_once(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Memory]:
        nothing = torch.zeros(len(prompts), 0, dtype=torch.long)
        inputs, mask, following = self._inputs(prompts, nothing, nothing.bool())
        with self._recomputing():
            output = self.base(**inputs, cache=self._new_cache(), use_cache=True)
        padded = not bool(mask.all())
        state = Memory(output.cache, mask.to(self.device), following.to(self.device), padded=padded)
        return output.last_hidden_state[:, -1].to(self.device), state

    def read_on(self, state: State, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Memory]:
        """Hidden [B, C, D] at each of C further tokens; mask is False at padding, which stands on the right.

        The given state stays as it is.
        """
        if isinstance(state.cache, Said):
            return self._say(state.cache, tokens, mask)
        return self._go_on(state, tokens, mask)

    def _go_on(self, state: State, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Memory]:
        known = state if isinstance(state, Memory) else Memory(**vars(state), padded=True)
        whole = bool(mask.all())
        if known.fold is not None:
            if whole and tokens.shape[1] == 1 and known.fold.pays() and not torch.is_grad_enabled():
                return self._one_more(known, known.fold, tokens, mask)
            known = unfolded(known)
        steps = known.positions[:, None] + mask.cumsum(1) - 1
        cache = again(known.cache)
        seen = torch.cat([known.mask, mask], 1)
        with self._recomputing():
            output = self.decoder(
                input_ids=tokens,
                attention_mask=seen.long() if known.padded else None,
                position_ids=self.axes(steps.clamp(min=0)),
                cache=cache,
                use_cache=True,
            )
        # Padding on the right is seen by nobody in this chunk, but by whoever reads on after it.
        following = known.positions + mask.sum(1)
        hidden = output.last_hidden_state.to(self.device)
        return hidden, Memory(cache, seen, following, padded=known.padded or not whole)

    def _one_more(self, known: Memory, fold: Fold, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Memory]:
        """One more token per row, all completions of a prompt in one row of the model."""
        cache, further = again(known.cache), fold.further()
        hidden = self.step(fold.folded(tokens), further.seen, self.axes(fold.folded(known.positions)), cache)
        after = Memory(cache, torch.cat([known.mask, mask], 1), known.positions + 1, padded=known.padded, fold=further)
        return hidden.flatten(0, 1)[:, None].to(self.device), after

    @cached_property
    def groups(self) -> int:
        """Heads that share keys and values."""
        config = self.inner.config.get_text_config()
        heads = int(config.num_attention_heads)
        return heads // int(getattr(config, "num_key_value_heads", None) or heads)

    @property
    def static(self) -> bool:
        """Whether a step can be one function of fixed tensors: attention takes a mask, and all stands on one device."""
        return self.shares and self._folds and len({weight.device for weight in self.module.parameters()}) == 1

    def step(self, ids: Tensor, seen: Tensor, places: Tensor, cache: Any) -> Tensor:
        """Hidden [M, T, D] of ids [M, T], which see what ``seen`` [M, 1, T, columns] says of themselves and a cache."""
        if not self._lean:
            told = {"attention_mask": seen, "position_ids": places, "cache": cache}
            return cast(Tensor, self.decoder(input_ids=ids, **told, use_cache=True).last_hidden_state)
        # What most decoders do, without what they ask about their configuration at every token.
        hidden: Tensor = self.decoder.embed_tokens(ids)
        angles = self.decoder.rotary_emb(hidden, places)
        for layer in self.decoder.layers:
            told = {"attention_mask": seen, "position_embeddings": angles, "cache": cache}
            hidden = layer(hidden, **told, use_cache=True)
        return cast(Tensor, self.decoder.norm(hidden))

    def axes(self, positions: Tensor) -> Tensor:
        """Positions on every axis that the model has."""
        return positions.expand(*self._position_axes, *positions.shape)

    def rows(self, state: State, index: Tensor) -> Memory:
        """The rows [B] long of a state, repeated or dropped as the index says; gradients flow through.

        Where no gradient is wanted and every row is repeated as often, the copies are not made: completions of a
        prompt then stand in one row and look at its keys and values together, as long as that pays.
        """
        known = state if isinstance(state, Memory) else Memory(**vars(state), padded=True)
        if isinstance(known.cache, Said):
            pick = picker(index, known.mask.shape[0], known.mask.device)
            return Memory(known.cache.rows(index), pick(known.mask), pick(known.positions), padded=True)
        if self._recomputed and torch.is_grad_enabled():
            return lent(known, index)
        return picked(known, index, fold=self._folds and not torch.is_grad_enabled())

    @cached_property
    def _folds(self) -> bool:
        """Whether attention takes a mask for every query: one call of PyTorch does."""
        return getattr(self.inner.config.get_text_config(), "_attn_implementation", None) == "sdpa"

    def read_whole(self, prompts: Sequence[Prompt], tokens: Tensor, mask: Tensor) -> Tensor:
        """Hidden [B, C, D] that predict each of C tokens after their prompts; every row is read as a whole.

        Images are encoded once per prompt. Where the head is not to be had apart from the model, the logits
        [B, C, V] themselves.
        """
        if self._plain_head is None:
            self._try_out()
        inputs, _, _ = self._inputs(prompts, tokens[:, :-1].cpu(), mask[:, :-1].cpu())
        model = self.base if self._plain_head else self.inner
        with self._recomputing():
            output = model(**inputs, use_cache=False)
        result: Tensor = output.last_hidden_state if self._plain_head else output.logits
        return result[:, -tokens.shape[1] :].to(self.device)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., V]."""
        if self._plain_head is None:
            self._try_out()
        return self._linear_head(hidden).to(self.device) if self._plain_head else hidden

    def _linear_head(self, hidden: Tensor) -> Tensor:
        """The output layer, and what the family makes of its logits."""
        layer = self.output_layer
        if hidden.dtype != layer.weight.dtype and not torch.is_autocast_enabled(hidden.device.type):
            hidden = hidden.to(layer.weight.dtype)
        return self.renderer.scale_logits(layer(hidden), self.inner.config)

    @cached_property
    def _recomputed(self) -> list[nn.Module]:
        return layers_of(self.base, self.checkpointing)

    def _recomputing(self) -> AbstractContextManager[None]:
        return recomputed(self._recomputed)

    # --- what a model wants to be told -----------------------------------------------------------

    def _new_cache(self) -> DynamicCache:
        return DynamicCache(config=self.inner.config)

    @cached_property
    def _position_axes(self) -> tuple[int, ...]:
        """[] or [3]: what a position has before rows and tokens."""
        return tuple(self.renderer.positions(Prompt("trial", torch.zeros(1, dtype=torch.long)), self.base).shape[:-1])

    def _inputs(self, prompts: Sequence[Prompt], tokens: Tensor, mask: Tensor) -> tuple[dict[str, Any], Tensor, Tensor]:
        """Keyword arguments that bring prompts and the C tokens after each into the model; the mask [B, P + C]; and
        the positions [B] behind the prompts."""
        ids, before, positions = self._padded(prompts)
        following = positions.reshape(-1, *ids.shape).amax((0, 2)) + 1
        steps = (following[:, None] + mask.cumsum(1) - 1).clamp(min=0)
        seen = torch.cat([before, mask], 1)
        places = torch.cat([positions, steps.expand(*positions.shape[:-1], -1)], -1)
        # Without a mask transformers would take a gap between positions for the beginning of another text.
        gapless = places.ndim == 3 or bool((places.diff() == 1).all())
        inputs: dict[str, Any] = {
            "input_ids": torch.cat([ids, tokens], 1).to(self.device),
            "attention_mask": None if gapless and bool(seen.all()) else seen.long().to(self.device),
            "position_ids": places.to(self.device),
        }
        rows = [
            self.renderer.token_inputs(torch.cat([prompt.ids, row]), len(prompt.ids))
            for prompt, row in zip(prompts, tokens, strict=True)
        ]
        for name in rows[0]:
            inputs[name] = pad_sequence([row[name] for row in rows], True, padding_side="left").to(self.device)
        return inputs | self._images(prompts), seen, following

    def _padded(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor, Tensor]:
        """Ids and mask [B, P], padded on the left, and positions [B, P] or [3, B, P]; all on the CPU."""
        longest = max(len(prompt.ids) for prompt in prompts)
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros(len(prompts), longest, dtype=torch.bool)
        places = [self._places(prompt) for prompt in prompts]
        positions = torch.zeros(*places[0].shape[:-1], len(prompts), longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            first = longest - len(prompt.ids)
            ids[row, first:], mask[row, first:] = prompt.ids, True
            positions[..., row, first:] = places[row]
        return ids, mask, positions

    def _places(self, prompt: Prompt) -> Tensor:
        """[P] or [3, P]"""
        found = self._positions.get(prompt)
        if found is None:
            found = self._positions[prompt] = self.renderer.positions(prompt, self.base)
        return found

    def _images(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Keyword arguments that bring the prompts' images into the base model."""
        shown = [prompt for prompt in prompts if prompt.inputs]
        if not shown:
            return {}
        if not self.renderer.takes_features(self.base):
            return _joined(shown, self.device)
        found = self._features(list(dict.fromkeys(shown)))
        features = [found[prompt] for prompt in shown]
        deep = tuple(torch.cat(level) for level in zip(*(f.deep for f in features), strict=True))
        return self.renderer.place(Features(torch.cat([f.pooled for f in features]), deep, features[0].whole))

    def _features(self, prompts: Sequence[Prompt]) -> dict[Prompt, Features]:
        tower = self.vision_parameters()
        frozen = self.features.limit > 0 and not any(parameter.requires_grad for parameter in tower)
        version = sum(parameter._version for parameter in tower)
        found: dict[Prompt, Features] = {}
        if frozen:
            found = {p: f for p in prompts if (f := self.features.get(p, version)) is not None}
        alike: dict[Any, list[Prompt]] = {}
        for prompt in prompts:
            if prompt not in found:
                shapes = tuple((name, tuple(tensor.shape[1:])) for name, tensor in sorted(prompt.inputs.items()))
                alike.setdefault(shapes, []).append(prompt)
        for group in alike.values():
            fresh = self._encode(group)
            found |= fresh
            if frozen:
                for prompt, features in fresh.items():
                    self.features.put(prompt, version, features)
        return found

    def _encode(self, prompts: Sequence[Prompt]) -> dict[Prompt, Features]:
        """One call of the tower for prompts whose images have the same shape."""
        made = self.renderer.encode(self.base, _joined(prompts, self.device))
        counts = [int(self.renderer.image_places(prompt.ids).sum()) for prompt in prompts]
        if len(made.pooled) != sum(counts):
            raise UsageError(
                f"{', '.join(prompt.task_id for prompt in prompts)}: {sum(counts)} image placeholders in the prompt, "
                f"{len(made.pooled)} features of the images: processor and model are of different kinds"
            )
        parts = zip(*(torch.split(level, counts) for level in (made.pooled, *made.deep)), strict=True)
        return {
            prompt: Features(pooled, tuple(deep), made.whole)
            for prompt, (pooled, *deep) in zip(prompts, parts, strict=True)
        }


def _joined(prompts: Sequence[Prompt], device: torch.device) -> dict[str, Tensor]:
    names = dict.fromkeys(name for prompt in prompts for name in prompt.inputs)
    return {name: torch.cat([prompt.inputs[name] for prompt in prompts]).to(device) for name in names}


def _close(one: Tensor, other: Tensor) -> bool:
    """Equal but for rounding, of the kind that the numbers' precision makes."""
    exact = one.dtype in (torch.float32, torch.float64)
    scale = float(other.abs().max()) + 1e-9
    return float((one.float() - other.float()).abs().max()) <= (1e-4 if exact else 5e-2) * scale
