"""One way to ask any vision-language model of transformers: pictures and words in, words or a probability out.

Questions go to the model in batches, each is asked once (answers are kept), and what asking cost is counted. The
judges of progress in ``vlm_progress.py`` ask through this; anything else with ``write`` and ``log_probability``
serves them as well, such as a client of a server.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor

from ..errors import UsageError
from .judge import QWEN, load_vlm, tokens_of

Prompt = tuple["str | Image.Image", ...]
"""Words and pictures in the order in which the model shall see them."""

Answer = TypeVar("Answer")

LIKELY = 0.1
"""Tokens below this share of the greatest probability are no alternatives (as in VLAC's code)."""


@dataclass(frozen=True)
class Token:
    """A token as it was written, and what else that is likely could have stood there, with probabilities."""

    text: str
    alternatives: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Written:
    """An answer: its text, and its tokens."""

    text: str
    tokens: tuple[Token, ...] = ()


class Speaker(Protocol):
    """Whoever answers questions."""

    def write(self, prompts: Sequence[Prompt], tokens: int) -> list[Written]:
        """The most probable answer to each, of at most so many tokens."""
        ...

    def log_probability(self, prompts: Sequence[Prompt], word: str) -> list[float]:
        """Log-probability that the answer to each begins with a word."""
        ...


class VLM:
    """A model of transformers with image-text-to-text head and chat template, as ``Speaker``.

    Loading happens at the first question. Answers are greedy. A word counts in every spelling that is one token of
    the model. Words in a question cannot write control tokens. A model that is given is put into eval mode for the
    time of asking only.

    Args:
        name_or_path: any such model.
        model, processor: loaded ones instead.
        device, dtype: of a model that is loaded by name.
        batch_size: questions per forward pass.
        keep: answers remembered; the ones unused longest are forgotten.

    Attributes:
        asked, hits: questions that the model answered, and ones that were remembered.
        calls: batches. seconds: of waiting for the model.

    Raises:
        UsageError: the model cannot be loaded, or splits every spelling of a word into several tokens.
    """

    def __init__(
        self,
        name_or_path: str = QWEN,
        *,
        model: Any = None,
        processor: Any = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 8,
        keep: int = 10_000,
    ) -> None:
        if (model is None) != (processor is None):
            raise UsageError("a VLM needs model and processor together, or a name to load both from")
        if batch_size < 1 or keep < 1:
            raise UsageError(f"VLM: batch_size ({batch_size}) and keep ({keep}) start at 1")
        self.name_or_path = name_or_path
        self.given = None if model is None else (model, processor)
        self.device, self.dtype = torch.device(device), dtype
        self.batch_size, self.keep = batch_size, keep
        self.asked = self.hits = self.calls = 0
        self.seconds = 0.0
        self._kept: OrderedDict[bytes, Any] = OrderedDict()

    def write(self, prompts: Sequence[Prompt], tokens: int) -> list[Written]:
        """As ``Speaker.write``."""
        return self._answers(f"write {tokens}", prompts, lambda some: self._write(some, tokens))

    def log_probability(self, prompts: Sequence[Prompt], word: str) -> list[float]:
        """As ``Speaker.log_probability``: summed over the spellings of the word."""
        ids = tokens_of(self._tokenizer, word)
        return self._answers(f"word {word}", prompts, lambda some: self._log_probability(some, ids))

    @cached_property
    def parts(self) -> tuple[Any, Any]:
        """Model and processor."""
        return self.given or load_vlm(self.name_or_path, self.device, self.dtype)

    @property
    def _tokenizer(self) -> Any:
        processor = self.parts[1]
        return getattr(processor, "tokenizer", processor)

    def _answers(
        self, how: str, prompts: Sequence[Prompt], answer: Callable[[Sequence[Prompt]], Sequence[Answer]]
    ) -> list[Answer]:
        """Kept answers, and those of the model for new questions, in batches of as many pictures each."""
        keys = [_digest(how, prompt) for prompt in prompts]
        found = {key: self._kept[key] for key in keys if key in self._kept}
        fresh = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in found}
        for pictures in sorted({_pictures(prompt) for prompt in fresh.values()}):
            rows = [key for key, prompt in fresh.items() if _pictures(prompt) == pictures]
            for start in range(0, len(rows), self.batch_size):
                some = rows[start : start + self.batch_size]
                began = time.perf_counter()
                found |= zip(some, answer([fresh[key] for key in some]), strict=True)
                self.seconds += time.perf_counter() - began
                self.calls += 1
        self.asked, self.hits = self.asked + len(fresh), self.hits + len(keys) - len(fresh)
        for key in keys:
            self._kept[key] = found[key]
            self._kept.move_to_end(key)
        while len(self._kept) > self.keep:
            self._kept.popitem(last=False)
        return [found[key] for key in keys]

    @torch.no_grad()
    def _log_probability(self, prompts: Sequence[Prompt], ids: Tensor) -> list[float]:
        model, inputs = self.parts[0], self._inputs(prompts)
        with _evaluating(model):
            logits: Tensor = model(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1].float().cpu()
        result: list[float] = logits.log_softmax(-1)[:, ids].logsumexp(-1).tolist()
        return result

    @torch.no_grad()
    def _write(self, prompts: Sequence[Prompt], tokens: int) -> list[Written]:
        model, inputs, tokenizer = self.parts[0], self._inputs(prompts), self._tokenizer
        with _evaluating(model):
            made = model.generate(
                **inputs,
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
                output_scores=True,
                return_dict_in_generate=True,
            )
        ids = made.sequences[:, inputs["input_ids"].shape[1] :].cpu()
        steps = torch.stack(made.scores, 1).float().cpu().softmax(-1)
        return [self._written(row, probabilities) for row, probabilities in zip(ids, steps, strict=True)]

    def _written(self, ids: Tensor, probabilities: Tensor) -> Written:
        tokenizer = self._tokenizer
        special = set(tokenizer.all_special_ids)
        tokens = []
        for token, chances in zip(ids.tolist(), probabilities, strict=True):
            if token == tokenizer.eos_token_id:
                break
            if token not in special:
                likely = (chances >= LIKELY * chances.max()).nonzero()[:, 0].tolist()
                others = tuple((tokenizer.decode([each]), float(chances[each])) for each in likely)
                tokens.append(Token(tokenizer.decode([token]), others))
        return Written(tokenizer.decode(ids, skip_special_tokens=True).strip(), tuple(tokens))

    def _inputs(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        model, processor = self.parts
        inputs = processor.apply_chat_template(
            [_conversation(prompt) for prompt in prompts],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            sanitize_control_tokens=True,
            processor_kwargs={"padding": True, "padding_side": "left"},
        )
        return {k: v.to(model.device, model.dtype if v.is_floating_point() else None) for k, v in inputs.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "parts"}


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Eval mode for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _conversation(prompt: Prompt) -> list[dict[str, Any]]:
    parts = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part} for part in prompt
    ]
    return [{"role": "user", "content": parts}]


def _pictures(prompt: Prompt) -> int:
    return sum(not isinstance(part, str) for part in prompt)


def _digest(how: str, prompt: Prompt) -> bytes:
    content = hashlib.sha256(how.encode())
    for part in prompt:
        if isinstance(part, str):
            content.update(b"\0words" + part.encode())
        else:
            content.update(b"\0picture" + f"{part.mode}{part.size}".encode() + part.tobytes())
    return content.digest()
