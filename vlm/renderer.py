"""Chat renderers: tasks become prompts, tokens become text; and what differs from one family of models to the next.

A family with a quirk overrides what differs and registers under its model type (``config.model_type``), in a file that
``--use`` names; other families take the defaults. Models of transformers begin at ``processing.ProcessorRenderer``.

    @register("renderer", "paligemma")
    class PaliGemmaRenderer(ProcessorRenderer):
        def token_inputs(self, ids, prompt):
            return {"token_type_ids": (torch.arange(len(ids)) >= prompt).long()}
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import torch
from torch import Tensor

from ..errors import UsageError
from ..types import Task
from ..untrusted import by_bytes, whole
from .backbone import Prompt
from .keeping import PromptStore
from .reach import Reach

SHOWN = "shown"
"""Payload entries of images shown after the first prompt: "shown.0.tokens", the places [2] where their reply begins and
ends among the tokens, and "shown.0.NAME", the inputs NAME of the images; then "shown.1.tokens" and so on."""

Stretch = tuple[Prompt, int, int]
"""The prompt that tokens follow, and the places where they begin and end."""


@dataclass(frozen=True, eq=False)
class Features:
    """What the vision tower made of images, in the order of their placeholders.

    Attributes:
        pooled: [N, D] what takes the place of the placeholders.
        deep: [N, D] each, what is added behind the decoder's first layers (Qwen3-VL); empty elsewhere.
        whole: the tower gave one tensor (InternVL), not one for each image.
    """

    pooled: Tensor
    deep: tuple[Tensor, ...] = ()
    whole: bool = False

    def bytes(self) -> int:
        return sum(t.nbytes for t in (self.pooled, *self.deep))


class Renderer:
    """Chat renderer: prepares every question once and keeps it, so that its completions share one Prompt.

    ``prompt``, ``tokens`` and ``text`` are to be written by a kind of model. The hooks of the model's side are asked by
    ``TransformersBackbone`` alone; ``base`` there is the model without its head.

    Args:
        ends: ids that end a completion.
        keep_bytes: limit of the prepared questions that are kept; the least recently asked goes first.

    Attributes:
        banned: ids that are never sampled: placeholders of images and videos, padding.
        image_token: the id that stands in a prompt for every feature of an image.
        sees: whether questions may have images.
        shares: False where a prompt can't be read apart from its answer; True lets the backbone try.
        reach: how many tokens question and answer may have together; None is no limit.
        vocabulary: how many ids the model knows; None is unknown.
        opened: "<think>" where a thought is open already when the model begins to speak.
    """

    ends: frozenset[int]
    banned: tuple[int, ...] = ()
    image_token: int | None = None
    sees: bool = False
    shares: bool = True
    reach: Reach | None = None
    vocabulary: int | None = None
    opened: str = ""

    def __init__(self, ends: Iterable[int], keep_bytes: int = 2**30) -> None:
        self.ends = frozenset(ends)
        self.store = PromptStore(keep_bytes)

    # --- tasks and text --------------------------------------------------------------------------

    def prompts(self, tasks: Sequence[Task]) -> list[Prompt]:
        """One prompt per task; equal tasks (same id, same text, same image objects that were not written over) get the
        same object."""
        return self.store.prompts(tasks, self.prompt)

    def prompt(self, task: Task) -> Prompt:
        """The question as the model reads it."""
        raise NotImplementedError

    def check_tasks(self, tasks: Iterable[Task], horizon: int) -> None:
        """Refuse before a run what could not be read in the middle of it.

        Args:
            horizon: most tokens of an answer whose task does not say.

        Raises:
            UsageError: a question that cannot be read, named by its task.
        """
        for task in tasks:
            self.check_room(self.prompt(task), task.horizon or horizon)

    def fits(self, prompt: Prompt, more: int) -> bool:
        """Whether the model can read a prompt and so many tokens behind it."""
        return self.reach is None or not self.reach.hard or len(prompt.ids) + more <= self.reach.tokens

    def check_room(self, prompt: Prompt, more: int) -> None:
        """Raise UsageError where so many more tokens behind a prompt pass what the model can read (``reach``)."""
        if self.reach is not None and not self.fits(prompt, more):
            raise UsageError(
                f"{prompt.task_id}: a question of {len(prompt.ids)} tokens and an answer of up to {more} pass "
                f"{self.reach.tokens} tokens, and {self.reach.why}: shorten the question, or give a smaller "
                "--max-new-tokens"
            )

    def plain(self, text: str) -> str:
        """Untrusted text as it may be read: what spells a control token is broken up, halves of surrogates are U+FFFD.

        It is applied to prompts, replies and answers wherever they become ids.
        """
        return whole(text)

    def shorten(self, text: str, tokens: int) -> str:
        """A text of at most so many tokens, and how many characters are left out."""
        return by_bytes(text, tokens)

    def tokens(self, text: str) -> Tensor:
        """[T] ids of an answer, an end id last."""
        raise NotImplementedError

    def text(self, ids: Tensor) -> str:
        """An answer without special tokens."""
        raise NotImplementedError

    def reply(self, text: str, images: Sequence[Any] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """What the model reads between two turns of its own, and the inputs of the images shown there.

        The ids go from behind the end of its turn to where it speaks again. A renderer with a chat format or with eyes
        writes its own (``between_turns`` helps); here it is the text and an end id.
        """
        if images:
            raise UsageError(f"{type(self).__name__} cannot show images in a reply: let the environment answer in text")
        return self.tokens(text), {}

    def closing(self, last: int) -> Tensor:
        """[T] ids that close a turn which the model ended with this one, if it is not the token that closes turns."""
        return torch.zeros(0, dtype=torch.long)

    def join(self, first: Mapping[str, Tensor], more: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Inputs of images and of those shown after them, stacked along the first axis."""
        parts = [part for part in (first, more) if part]
        names = dict.fromkeys(name for part in parts for name in part)
        return {name: torch.cat([part[name] for part in parts if name in part]) for name in names}

    def stretches(self, prompt: Prompt, payload: Mapping[str, Tensor]) -> tuple[Stretch, ...]:
        """How to read a rollout's tokens: in one piece, but replies that show images begin a new, longer prompt."""
        found: list[Stretch] = []
        start = 0
        while f"{SHOWN}.{len(found)}.tokens" in payload:
            mark = f"{SHOWN}.{len(found)}."
            reply, after = payload[mark + "tokens"].tolist()
            found.append((prompt, start, reply))
            fresh = {name.removeprefix(mark): values for name, values in payload.items() if name.startswith(mark)}
            fresh.pop("tokens")
            ids = torch.cat([prompt.ids, payload["tokens"][start:after]])
            prompt, start = Prompt(prompt.task_id, ids, self.join(prompt.inputs, fresh)), after
        return (*found, (prompt, start, int(payload["length"])))

    def save(self, folder: Path) -> None:
        """Keep what is needed to read questions again beside a model's weights; here nothing is."""

    # --- the model's side ------------------------------------------------------------------------

    def token_inputs(self, ids: Tensor, prompt: int) -> dict[str, Tensor]:
        """Further inputs of the model with a number for each token, such as ``token_type_ids``: [T] each.

        Args:
            ids: [T] those of a prompt and what was said after it.
            prompt: how many are the prompt's.
        """
        return {}

    def positions(self, prompt: Prompt, base: Any) -> Tensor:
        """[P] position ids, or [3, P] for a model that counts time, height and width (Qwen).

        What is said after the prompt goes on from the largest, alike on every axis.
        """
        positions, rope = torch.arange(len(prompt.ids)), getattr(base, "get_rope_index", None)
        if rope is None:
            return positions
        if "image_grid_thw" not in prompt.inputs:
            return positions.expand(3, -1)
        inputs = {"mm_token_type_ids": self.image_places(prompt.ids).int()[None]}
        inputs["image_grid_thw"] = prompt.inputs["image_grid_thw"]
        axes: Tensor = rope(input_ids=prompt.ids[None], **inputs)[0][:, 0]
        return axes

    def image_places(self, ids: Tensor) -> Tensor:
        """[P] True at placeholders."""
        return torch.isin(ids, torch.tensor([] if self.image_token is None else [self.image_token]))

    def takes_features(self, base: Any) -> bool:
        """Whether the model can be given features in place of images, so that images are encoded once per prompt."""
        return "mm_encoder_outputs" in inspect.signature(base.forward).parameters

    def encode(self, base: Any, inputs: Mapping[str, Tensor]) -> Features:
        """The vision tower's features of images; ``inputs`` are the prompts', stacked along the first axis."""
        output = base.get_image_features(**inputs, return_dict=True)
        deep = tuple(_rows(level) for level in getattr(output, "deepstack_features", None) or ())
        return Features(_rows(output.pooler_output), deep, isinstance(output.pooler_output, Tensor))

    def place(self, features: Features) -> dict[str, Any]:
        """Keyword arguments with which the model puts features where the placeholders are."""
        pooled = features.pooled if features.whole else (features.pooled,)
        output = SimpleNamespace(pooler_output=pooled, deepstack_features=[(level,) for level in features.deep])
        return {"mm_encoder_outputs": {"image": output}}

    def scale_logits(self, logits: Tensor, config: Any) -> Tensor:
        """What the family makes of its output layer's logits: a divisor (Granite), a factor (Cohere), a soft cap
        (Gemma 2), as its configuration says."""
        text, names = config.get_text_config(), ("logits_scaling", "logit_scale", "final_logit_softcapping")
        divisor, factor, cap = (getattr(text, name, None) for name in names)
        if divisor is not None:
            logits = logits / divisor
        if factor is not None:
            logits = logits * factor
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Forks of a policy share it: a prompt must stay one object."""
        return self


def _rows(features: Tensor | Sequence[Tensor]) -> Tensor:
    """[N, D] from one tensor, or from one per image."""
    parts = [features] if isinstance(features, Tensor) else list(features)
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])


def between_turns(render: Callable[[list[dict[str, Any]]], str], content: Any, end: str) -> str:
    """What a chat template writes between the end of a model's turn and its next one, when ``content`` is said to it.

    Args:
        render: messages -> text with the opening of the model's next turn, such as
            ``lambda m: processor.apply_chat_template(m, tokenize=False, add_generation_prompt=True)``.
        content: of a user's message, in the form that the template takes.
        end: the end token's text, which the model has said itself.

    Raises:
        UsageError: the template leaves out what the model said.
    """
    word = "\ue000"  # stands for the model's turn: a character of nobody's language

    def said(role: str, text: str) -> dict[str, Any]:
        return {"role": role, "content": text if isinstance(content, str) else [{"type": "text", "text": text}]}

    messages = [said("user", "."), said("assistant", word), {"role": "user", "content": content}]
    _, found, after = render(messages).partition(word)
    if not found:
        raise UsageError("the chat template leaves out what the assistant said: it cannot hold a conversation")
    closed = after.lstrip()
    return closed.removeprefix(end) if closed.startswith(end) else after
