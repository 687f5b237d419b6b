"""Vision-language models of transformers as judges: pictures and words in, words or a probability out.

Questions go to the model in batches, each is asked once (answers are kept), and what asking cost is counted. The
judges in ``judge.py``, ``rubric.py`` and ``vlm_progress.py`` ask through this; anything else with the same methods
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
from torch import Tensor

from ...errors import UsageError
from ...numbers import rows_by_key
from ...untrusted import Plain, plain_of
from .exhibits import Prompt
from .weights import loading

QWEN = "Qwen/Qwen2.5-VL-7B-Instruct"

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


def load_vlm(name_or_path: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """An image-text-to-text model of transformers, frozen, and its processor.

    Raises:
        UsageError: it cannot be loaded.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    auto: Any = AutoProcessor
    with loading(name_or_path):
        processor = auto.from_pretrained(name_or_path)
        model: Any = AutoModelForImageTextToText.from_pretrained(name_or_path, dtype=dtype)
    return model.to(device).requires_grad_(False), processor


def tokens_of(tokenizer: Any, word: str) -> Tensor:
    """The ids of every spelling of a word that is one token: "yes", "Yes", "YES", with and without a space before it.

    Raises:
        UsageError: there is none.
    """
    spellings = [space + form for form in (word.lower(), word.capitalize(), word.upper()) for space in ("", " ")]
    encoded = [tokenizer.encode(spelling, add_special_tokens=False) for spelling in spellings]
    ids = {ids[0] for ids in encoded if len(ids) == 1} - {tokenizer.unk_token_id}
    if not ids:
        raise UsageError(
            f'the tokenizer {type(tokenizer).__name__} splits "{word}" in every spelling, so that its first token '
            "says nothing; take another model"
        )
    return torch.tensor(sorted(ids))


def share_of_yes(logits: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """[N] P(yes) / (P(yes) + P(no)) of the next token, from logits [N, V] and the tokens of the two words."""
    logits = logits.float()
    return (logits[:, yes].logsumexp(-1) - logits[:, no].logsumexp(-1)).sigmoid()


@contextmanager
def evaluating(module: Any) -> Iterator[None]:
    """Eval mode and no gradient for a while; the mode of before afterwards."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)


def version_of(module: Any) -> int:
    """A number that grows with every change of a module's weights."""
    return sum(weight._version for weight in module.parameters())


class VLM:
    """A model of transformers with image-text-to-text head and chat template, as ``Speaker``.

    Loading happens at the first question. Words in a question cannot write control tokens. A model that is given is
    used itself, in eval mode for the time of asking only; answers are forgotten when its weights change.

    Args:
        name_or_path: any such model.
        model, processor: loaded ones instead.
        device, dtype: of a model that is loaded by name; by default bfloat16 on a GPU where there is one, else float32
            on the CPU.
        batch_size: questions per forward pass.
        keep: answers remembered; the ones unused longest are forgotten.

    Attributes:
        families: "vlm:NAME" of the model, or of the class of one that was given.
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
        device: str | None = None,
        dtype: torch.dtype | None = None,
        batch_size: int = 8,
        keep: int = 10_000,
    ) -> None:
        if (model is None) != (processor is None):
            raise UsageError("a VLM needs model and processor together, or a name to load both from")
        if batch_size < 1 or keep < 1:
            raise UsageError(f"VLM: batch_size ({batch_size}) and keep ({keep}) start at 1")
        self.name_or_path = name_or_path
        self.given = None if model is None else (model, processor)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = dtype or (torch.float32 if self.device.type == "cpu" else torch.bfloat16)
        self.batch_size, self.keep = batch_size, keep
        self.asked = self.hits = self.calls = 0
        self.seconds = 0.0
        self.families = frozenset({f"vlm:{name_or_path if model is None else type(model).__name__}"})
        self._kept: OrderedDict[bytes, Any] = OrderedDict()
        self._version = 0

    def __call__(self, prompts: Sequence[Prompt]) -> list[float]:
        """P(yes) / (P(yes) + P(no)) of the first token of the answer to each, in 0..1; see ``tokens_of``."""
        yes, no = (tokens_of(self._tokenizer, word) for word in ("yes", "no"))
        return self._answers("yes or no", prompts, lambda some: share_of_yes(self._next(some), yes, no).tolist())

    def write(self, prompts: Sequence[Prompt], tokens: int) -> list[Written]:
        """As ``Speaker.write``."""
        return self._answers(f"write {tokens}", prompts, lambda some: self._write(some, tokens))

    def log_probability(self, prompts: Sequence[Prompt], word: str) -> list[float]:
        """As ``Speaker.log_probability``: summed over the spellings of the word."""
        ids = tokens_of(self._tokenizer, word)

        def log_probability(some: Sequence[Prompt]) -> list[float]:
            result: list[float] = self._next(some).log_softmax(-1)[:, ids].logsumexp(-1).tolist()
            return result

        return self._answers(f"word {word}", prompts, log_probability)

    @cached_property
    def parts(self) -> tuple[Any, Any]:
        """Model and processor."""
        return self.given or load_vlm(self.name_or_path, self.device, self.dtype)

    @cached_property
    def _plain(self) -> Plain:
        return plain_of(self.parts[1])

    @property
    def _tokenizer(self) -> Any:
        processor = self.parts[1]
        return getattr(processor, "tokenizer", processor)

    def _answers(
        self, how: str, prompts: Sequence[Prompt], answer: Callable[[Sequence[Prompt]], Sequence[Answer]]
    ) -> list[Answer]:
        """Kept answers, and those of the model for new questions, in batches of as many pictures each."""
        if (version := version_of(self.parts[0])) != self._version:
            self._kept.clear()
            self._version = version
        keys = [_digest(how, prompt) for prompt in prompts]
        answers = {key: self._kept[key] for key in keys if key in self._kept}
        fresh = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in answers}
        new, asked = list(fresh), list(fresh.values())
        for rows in self._batches(asked):
            began = time.perf_counter()
            answers |= zip([new[row] for row in rows], answer([asked[row] for row in rows]), strict=True)
            self.seconds += time.perf_counter() - began
        self.asked, self.hits = self.asked + len(fresh), self.hits + len(keys) - len(fresh)
        for key in keys:
            self._kept[key] = answers[key]
            self._kept.move_to_end(key)
        while len(self._kept) > self.keep:
            self._kept.popitem(last=False)
        return [answers[key] for key in keys]

    def sample(self, prompts: Sequence[Prompt], tokens: int = 512, temperature: float = 1.0) -> list[str]:
        """A text of at most so many tokens, drawn for each prompt: equal calls give equal texts, and equal prompts in
        one call texts of their own. Nothing is remembered."""
        texts = [""] * len(prompts)
        how: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        for rows in self._batches(prompts):
            seed = hashlib.sha256(b"".join(_digest(f"sample {row}", prompts[row]) for row in rows)).digest()
            device = self.parts[0].device
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(int.from_bytes(seed[:8], "big") >> 1)
                ids, _ = self._generate([prompts[row] for row in rows], tokens, **how)
            for row, text in zip(rows, self._tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
                texts[row] = text.strip()
        self.asked += len(prompts)
        return texts

    def _batches(self, prompts: Sequence[Prompt]) -> Iterator[list[int]]:
        """Rows that are asked at once: as many pictures each, since processors do not batch with and without."""
        for rows in rows_by_key(_pictures(prompt) for prompt in prompts).values():
            for start in range(0, len(rows), self.batch_size):
                self.calls += 1
                yield rows[start : start + self.batch_size]

    def _next(self, prompts: Sequence[Prompt]) -> Tensor:
        """[N, V] logits of the first token of an answer, float32 on the CPU."""
        model, inputs = self.parts[0], self._inputs(prompts)
        with evaluating(model):
            logits: Tensor = model(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1].float().cpu()
        return logits

    def _write(self, prompts: Sequence[Prompt], tokens: int) -> list[Written]:
        ids, scores = self._generate(prompts, tokens, do_sample=False)
        steps = torch.stack(list(scores), 1).float().cpu().softmax(-1)
        return [self._written(row, probabilities) for row, probabilities in zip(ids, steps, strict=True)]

    def _generate(self, prompts: Sequence[Prompt], tokens: int, **how: Any) -> tuple[Tensor, Sequence[Tensor]]:
        """Tokens [N, T] of the answers, on the CPU, and the scores [N, V] of each of the T steps."""
        model, inputs = self.parts[0], self._inputs(prompts)
        how |= {"pad_token_id": self._tokenizer.pad_token_id, "output_scores": True, "return_dict_in_generate": True}
        with evaluating(model):
            made = model.generate(**inputs, max_new_tokens=tokens, **how)
        return made.sequences[:, inputs["input_ids"].shape[1] :].cpu(), made.scores

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
            [self._conversation(prompt) for prompt in prompts],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        )
        return {k: v.to(model.device, model.dtype if v.is_floating_point() else None) for k, v in inputs.items()}

    def _conversation(self, prompt: Prompt) -> list[dict[str, Any]]:
        parts = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
            for part in prompt
        ]
        return [{"role": "user", "content": self._plain.blocks(parts)}]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("parts", "_plain")}


def _pictures(prompt: Prompt) -> int:
    return sum(not isinstance(part, str) for part in prompt)


def _digest(how: str, prompt: Prompt) -> bytes:
    content = hashlib.sha256(how.encode())
    for part in prompt:
        if isinstance(part, str):
            content.update(b"\0words" + part.encode(errors="surrogatepass"))
        else:
            content.update(b"\0picture" + f"{part.mode}{part.size}".encode() + part.tobytes())
    return content.digest()
