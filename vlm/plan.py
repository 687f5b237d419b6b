"""What sampling and learning will take, counted on fake tensors of the run's own model before its weights are loaded.

The decoder runs on shapes without data, with the very checkpointing and the very chunks of the head that learning uses,
and every storage is counted while it is alive. What is not run is arithmetic: keys and values while decoding, logits of
a step, the vision tower, gradients and AdamW's moments. Not counted: what allocator and kernels keep for themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import DynamicCache

from ..errors import UsageError
from ..trainers.lora import CONFIG, add_lora
from ..trainers.peak import GIB, fake, peak_bytes, recomputed_share
from ..trainers.precision import autocast_of
from .checkpointing import Lent, layers_of, recomputed
from .lean import plain_adapter
from .loading import base_of, model_class, of_language
from .memory import Growing
from .token_scores import token_scores

if TYPE_CHECKING:
    from .setting import LanguageConfig

PICTURED, WRITTEN = 1200, 400
"""Tokens that a question is taken to have: with a picture of about a megapixel, and without."""


@dataclass(frozen=True)
class Shape:
    """Of what is held at once: questions of so many tokens, completions of each, tokens of one."""

    questions: int
    question: int
    completions: int
    completion: int

    @property
    def rows(self) -> int:
        return self.questions * self.completions

    @property
    def tokens(self) -> int:
        """As ``sample_tokens`` and ``micro_batch_tokens`` count them."""
        return self.questions * self.question + self.rows * self.completion

    def within(self, tokens: int) -> Shape:
        """As many questions with all their completions as so many tokens hold, or a part of one's completions."""
        each = replace(self, questions=1)
        if each.tokens <= tokens:
            return replace(self, questions=min(self.questions, tokens // each.tokens))
        several = (tokens - self.question) // self.completion
        return replace(each, completions=min(self.completions, max(1, several)))


@dataclass(frozen=True)
class TokenPlan:
    """An estimate in bytes.

    Attributes:
        weights: all of them. training: gradients, AdamW's moments and copies of what is trained.
        sampling, learning: what each takes beside them, at its most.
        sampled, learned: what is held at once then.
        whole: what a round asks and answers in all.
        checkpointing: share of the layers that are recomputed.
        budget: what there is; None is unknown.
    """

    weights: int
    training: int
    sampling: int
    learning: int
    sampled: Shape
    learned: Shape
    whole: Shape
    checkpointing: float
    budget: int | None = None

    def settings(self) -> dict[str, int]:
        """The config's numbers of tokens that hold this."""
        return {"sample_tokens": self.sampled.tokens, "micro_batch_tokens": self.learned.tokens}

    @property
    def total(self) -> int:
        return self.weights + self.training + max(self.sampling, self.learning)

    def __str__(self) -> str:
        def held(shape: Shape, name: str) -> str:
            return f"{shape.rows} of {self.whole.rows} rows at once ({name} {shape.tokens})"

        budget = "" if self.budget is None else f" of {told(self.budget)}"
        return "\n".join(
            [
                f"plan: {told(self.total)}{budget} at the most, with questions of {self.whole.question} tokens",
                f"  weights {told(self.weights)}; gradients, optimiser and copies {told(self.training)}",
                f"  sampling {told(self.sampling)}: {held(self.sampled, 'sample_tokens')}",
                f"  learning {told(self.learning)}: {held(self.learned, 'micro_batch_tokens')}, "
                f"{self.checkpointing:.0%} of the layers recomputed",
            ]
        )


class Planner:
    """Counts for one config; its model, of a folder or hub name, stands on fake tensors.

    Args:
        compute: what is computed in, and the type of weights that are not trained.

    Raises:
        UsageError: no such model, or one that cannot be counted.
    """

    def __init__(self, config: LanguageConfig, source: str, compute: torch.dtype) -> None:
        self.config = config
        self.model, self.sees = skeleton(config, source)
        with FakeTensorMode():
            fake(self.model, compute)
        weights = list(self.model.parameters())
        trained = [weight for weight in weights if weight.requires_grad]
        self.checkpointing = recomputed_share(self.model, config.gradient_checkpointing)
        self._known: dict[tuple[str, Shape], int] = {}
        self.weights = sum(_bytes(weight) for weight in weights)
        copies = 1 + 2 * (config.gate != "none")  # the start, a gate's two
        self.training = sum(4 * weight.numel() * (3 + copies) for weight in trained)
        if config.decoder == "merged":
            adapted = (part.base_layer.weight for part in self.model.modules() if plain_adapter(part))
            self.training += sum(compute.itemsize * weight.numel() for weight in adapted)
        self.autocast = autocast_of(compute)
        question = PICTURED if self.sees else WRITTEN
        self.whole = Shape(config.tasks_per_step, question, config.group_size, config.max_new_tokens)

    def plan(self, budget: int | None) -> TokenPlan:
        """The plan for the config's numbers of tokens; those that it leaves open are the largest that a budget holds.

        Args:
            budget: bytes; needed where the config leaves a number open.

        Raises:
            UsageError: the budget does not hold one row.
        """
        sample, learn = self.config.sample_tokens, self.config.micro_batch_tokens
        sampled = self.whole.within(sample) if sample else self._largest(self.sampling, budget, "sampling")
        learned = self.whole.within(learn) if learn else self._largest(self.learning, budget, "learning")
        taken = self.sampling(sampled), self.learning(learned)
        return TokenPlan(self.weights, self.training, *taken, sampled, learned, self.whole, self.checkpointing, budget)

    def _largest(self, measure: Any, budget: int | None, name: str) -> Shape:
        assert budget is not None
        left, one = budget - self.weights - self.training, replace(self.whole, questions=1, completions=1)
        few = self.whole.within(self.whole.question + 4 * self.whole.completion)
        if measure(few) > left and measure(one) > left:
            needed = self.weights + self.training + measure(one)
            raise UsageError(
                f"{name} of one answer takes {told(needed)} with this model, of which {told(budget)} are there: "
                "give a smaller --max-new-tokens, --gradient-checkpointing 1, a smaller model or a larger --memory-gb"
            )
        more = self.whole.within(2 * replace(self.whole, questions=1).tokens)
        slope = max(1.0, (measure(more) - measure(few)) / max(1, more.tokens - few.tokens))
        found = self.whole.within(max(one.tokens, few.tokens + int(0.98 * (left - measure(few)) / slope)))
        while measure(found) > left and found.rows > 1:  # not quite linear
            found = self.whole.within(int(0.95 * found.tokens) if found.rows > 2 else one.tokens)
        return found

    # --- what is counted -------------------------------------------------------------------------

    def sampling(self, shape: Shape) -> int:
        """Bytes beside the weights: reading the questions, or keys, values and logits of decoding them."""
        text = self.model.config.get_text_config()
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        token = 2 * 2 * text.num_hidden_layers * heads * size  # in 16 bits
        # Completions share their question's keys until a quarter has ended; then the others get copies of their own,
        # beside what was there. Both have room for half as much again.
        apart = 3 * shape.rows * (shape.question + shape.completion) // 4
        kept = 3 * token * (shape.tokens + apart) // 2
        logits = 28 * shape.rows * text.vocab_size  # three times in float32, twice in float64
        reading = self._most("reading", replace(shape, completions=0), lambda: self._only_read(shape))
        return int(max(reading + self._tower(shape), kept + logits))

    def learning(self, shape: Shape) -> int:
        """Bytes beside the weights, gradients and moments: a piece forward and backward."""
        return self._most("learning", shape, lambda: self._scores(shape))

    def operations(self, shape: Shape) -> int:
        """Floating-point operations of learning on a piece, what is recomputed included."""
        from torch.utils.flop_counter import FlopCounterMode

        mixed = torch.autocast("cpu", self.autocast, enabled=self.autocast is not None)
        with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter, mixed:
            scores = self._scores(shape)
            torch.autograd.backward([scores], [torch.ones_like(scores)])
        return int(counter.get_total_flops())

    def _most(self, name: str, shape: Shape, work: Callable[[], Tensor]) -> int:
        """Bytes that work takes at its most; each kind and shape is counted once."""
        if (name, shape) not in self._known:
            self._known[name, shape] = peak_bytes(self.model, work, self.autocast)
        return self._known[name, shape]

    def _tower(self, shape: Shape) -> int:
        """Of a vision tower that looks at every question's picture, four patches to a token."""
        vision = getattr(self.model.config, "vision_config", None)
        if vision is None:
            return 0
        width = 10 * vision.hidden_size + 3 * getattr(vision, "intermediate_size", 4 * vision.hidden_size)
        return int(2 * 4 * shape.questions * shape.question * width)

    def _read(self, shape: Shape) -> Any:
        ids = torch.zeros(shape.questions, shape.question, dtype=torch.long)
        cache = DynamicCache(config=self.model.config)
        return self._decoder(ids, torch.arange(shape.question), cache)

    @torch.no_grad()
    def _only_read(self, shape: Shape) -> Tensor:
        hidden: Tensor = self._read(shape).last_hidden_state
        return hidden

    def _scores(self, shape: Shape) -> Tensor:
        layers = layers_of(self.model.base_model, self.checkpointing)

        def pick(tensor: Tensor) -> Tensor:
            return tensor.repeat_interleave(shape.completions, 0)

        with recomputed(layers):
            read = self._read(shape)
            known, cache = read.cache.layers, DynamicCache()
            if layers:
                cache.layers = [Lent(layer.keys, layer.values, pick) for layer in known]
            else:
                cache.layers = [Growing(pick(layer.keys), pick(layer.values)) for layer in known]
            further = torch.zeros(shape.rows, max(1, shape.completion - 1), dtype=torch.long)
            places = shape.question + torch.arange(further.shape[1])
            later = self._decoder(further, places, cache).last_hidden_state
        hidden = torch.cat([pick(read.last_hidden_state[:, -1:]), later], 1).flatten(0, 1)
        del read, later, known, cache
        head = self.model.get_output_embeddings()
        policy: Any = SimpleNamespace(logits=lambda h: head(h).float())
        tokens, ones = torch.zeros(len(hidden), dtype=torch.long), torch.ones(len(hidden), 1)
        entropy = bool(self.config.entropy_coef)
        return torch.stack(list(token_scores(policy, hidden, tokens, ones, entropy=entropy, others={}).values()))

    def _decoder(self, ids: Tensor, places: Tensor, cache: Any) -> Any:
        axes = (3,) if hasattr(self.model.base_model, "get_rope_index") else ()
        positions = places.expand(*axes, *ids.shape)
        return self.model.get_decoder()(input_ids=ids, position_ids=positions, cache=cache, use_cache=True)


def skeleton(config: LanguageConfig, source: str) -> tuple[Any, bool]:
    """A model's folder or hub name -> it on the meta device, with its adapters and what it trains; whether it sees."""
    from pathlib import Path

    from transformers import AutoConfig

    from ..rewards.models.weights import loading

    adapters = Path(source) / CONFIG
    source = base_of(adapters) if adapters.is_file() else source
    with loading(source):
        described = AutoConfig.from_pretrained(source)
    auto, sees = model_class(described, source)
    with torch.device("meta"):
        model: Any = auto.from_config(described, dtype=torch.float32, attn_implementation="sdpa")
        model.eval()
        if config.lora_rank:
            add_lora(model, config.lora_rank, of_language(model))
    if config.freeze_vision:
        text = {id(weight) for weight in model.get_decoder().parameters()}
        for weight in model.base_model.parameters():
            weight.requires_grad_(weight.requires_grad and id(weight) in text)
    return model, sees


def told(size: float) -> str:
    """Bytes in words."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.1f} MiB"


def _bytes(tensor: Tensor | nn.Parameter) -> int:
    return tensor.numel() * tensor.element_size()
