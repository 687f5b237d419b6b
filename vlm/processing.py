"""Renderers of transformers' models: chat template, image processor, ends of turns, and which ids nobody may say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..errors import UsageError
from ..images import PIXEL_LIMIT, as_pil
from ..types import Task
from ..untrusted import Plain, mapped, shortened, whole
from .backbone import Prompt
from .checks import TaskCheck
from .reach import reach_of
from .renderer import Renderer, between_turns

_VISUAL = re.compile(r"image|img|vision|video|audio|<row_\d+_col_\d+>", re.IGNORECASE)
_VISUAL_ID = re.compile(r"(image|img|vision|video|audio|row_col|boi|eoi)\w*(_token|_token_id|_token_index|_ids|_tag)$")


class ProcessorRenderer(Renderer):
    """A processor of transformers, or a tokenizer for models of text alone; it is called once per question.

    A task's prompt is a text, or chat messages ``[{"role": ..., "content": text or blocks}]``; its images are PIL
    images, uint8 arrays or tensors [H, W, 3] or [3, H, W], floats in 0..1, or paths. They take the places of the
    blocks ``{"type": "image"}``; without any, they stand before the text of the first message from the user. Where the
    last message is the assistant's, the answer goes on from it. Control tokens and placeholders that texts spell are
    read as plain text.

    Args:
        model: whose configuration names ends and placeholders.
        chat: put prompts through the chat template; without it a text is read as it is, control tokens and
            placeholders included, whoever wrote them.
        pixel_limit: most pixels of an image; larger ones are refused before they are processed.
        keep_bytes: limit of the prepared questions that are kept.

    Attributes:
        turn_end: the id with which the chat template ends the model's turn, None where it writes none: then the
            tokenizer's end of text does.
        plain: untrusted text -> text without control tokens, see ``untrusted.Plain``.
    """

    plain: Plain  # a method of the base

    def __init__(
        self,
        processor: Any,
        model: Any,
        *,
        chat: bool = True,
        pixel_limit: int = PIXEL_LIMIT,
        keep_bytes: int = 2**30,
    ) -> None:
        self.processor, self.tokenizer = processor, getattr(processor, "tokenizer", processor)
        self.config, self.chat, self.pixel_limit = model.config, chat, pixel_limit
        self.sees = processor is not self.tokenizer
        self.plain = Plain(self.tokenizer)
        between = self._between() if chat else []
        self.turn_end = between[0][1] if between and between[0][0] == 0 else None
        super().__init__(self.end_ids(model), keep_bytes)
        names = ("image_token_id", "image_token_index")
        self.image_token = next((i for n in names if (i := getattr(self.config, n, None)) is not None), None)
        placeholders = self.placeholder_ids()
        self.vocabulary = int(model.get_input_embeddings().weight.shape[0])
        self.banned = tuple(sorted({*placeholders, *_beyond(self.vocabulary, self.tokenizer)}))
        told = [self.tokenizer.convert_ids_to_tokens(number) for number in placeholders]
        spoken = [name for _, _, name in between]
        self.plain = Plain(self.tokenizer, [*(name for name in told if isinstance(name, str)), *spoken])
        self.reach = reach_of(model)
        self.opened = self._opened() if chat else ""

    def _opened(self) -> str:
        """The tag of a thought that the template opens before the model speaks."""
        try:
            said = self.written(Task("trial", ".")).rstrip()
        except UsageError:
            return ""
        return "<think>" if said.endswith("<think>") else ""

    def _between(self) -> list[tuple[int, int, str]]:
        """Place, id and text of each added token that the template writes from a turn's end to the model's next."""
        content: Any = [{"type": "text", "text": "."}] if self.sees else "."
        try:
            text = between_turns(self.render, content, "").lstrip()
        except Exception:  # no template, or one that holds no conversation: told of where one is wanted
            return []
        added = {token.content: number for number, token in self.tokenizer.added_tokens_decoder.items()}
        names = sorted((name for name in added if name.strip() and name in text), key=len, reverse=True)
        if not names:
            return []
        found = re.finditer("|".join(map(re.escape, names)), text)
        return [(match.start(), added[match[0]], match[0]) for match in found]

    def end_ids(self, model: Any) -> frozenset[int]:
        """Ids that end an answer: the turn's end, the tokenizer's, and those that the generation settings name.

        Raises:
            UsageError: there is none.
        """
        named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        given = [self.turn_end, self.tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
        ends = frozenset(int(i) for i in given if i is not None)
        if not ends:
            raise UsageError(
                f"neither the tokenizer nor the generation settings of {type(model).__name__} name an end of text: set "
                "tokenizer.eos_token"
            )
        return ends

    def placeholder_ids(self) -> tuple[int, ...]:
        """Every id that stands for images, videos and their frames and rows, and padding that ends nothing.

        They are looked for in the configuration, in what the processor names, and among the tokenizer's special tokens.
        A model that says one breaks the next turn: "image features and image tokens do not match" is the most reported
        crash of training vision-language models.
        """
        tokenizer = self.tokenizer
        found: set[int] = set()
        for owner in (self.config.to_dict(), _public(self.processor), _public(tokenizer)):
            for name, value in owner.items():
                if _VISUAL_ID.search(name):
                    found |= _ids(value, tokenizer)
        for number, token in tokenizer.added_tokens_decoder.items():
            if token.special and _VISUAL.search(token.content):
                found.add(number)
        if tokenizer.pad_token_id is not None:
            found.add(tokenizer.pad_token_id)
        return tuple(sorted(found - self.ends - {tokenizer.unk_token_id}))

    def save(self, folder: Path) -> None:
        """The processor beside the model's weights."""
        self.processor.save_pretrained(folder)

    def prompt(self, task: Task) -> Prompt:
        """The question's ids and what the processor made of its images.

        Raises:
            UsageError: images that cannot be read or are too large, another number of placeholders than images, a
                chat template that is missing or drops images; the line names the task.
        """
        text = self.written(task)
        if not self.chat:
            return self._read(task, text, special=True)
        bos = self.tokenizer.bos_token
        return self._read(task, text, special=self.sees and not (bos is not None and text.startswith(bos)))

    def written(self, task: Task) -> str:
        """The question's text up to where the model speaks, images as the template marks them. Raises as ``prompt``."""
        self._check_eyes(task)
        if not self.chat:
            return self._as_it_is(task)
        try:
            return self.render(self._messages(task, len(task.images)))
        except UsageError:
            raise
        except Exception as error:  # templates are programs of others
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UsageError(f"{task.id}: the chat template refuses the messages: {said}") from error

    def check_tasks(self, tasks: Iterable[Task], horizon: int) -> None:
        """As of the base; pictures are not decoded, and odd shapes of them are tried once."""
        TaskCheck(self, horizon)(tasks)

    def _read(self, task: Task, text: str, special: bool) -> Prompt:
        """A rendered text and the task's images as ids and the tower's inputs."""
        images = [as_pil(image, f"{task.id}: image {i + 1}", self.pixel_limit) for i, image in enumerate(task.images)]
        if not self.sees:
            ids = self.tokenizer(text, add_special_tokens=special)["input_ids"]
            return Prompt(task.id, torch.tensor(ids, dtype=torch.long))
        self._check_placeholders(task, text, len(images))
        try:
            found = self.processor(text=[text], images=images or None, return_tensors="pt", add_special_tokens=special)
        except Exception as error:  # processors fail in many ways; a person wants to know on which question
            said = str(error).splitlines()[0] if str(error) else ""
            raise UsageError(
                f"{task.id}: {type(self.processor).__name__} cannot read the question: {type(error).__name__}: {said}"
            ) from error
        ids = found["input_ids"][0]
        return Prompt(task.id, ids, self._inputs(task, found, ids) if images else {})

    def _inputs(self, task: Task, found: Mapping[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
        """What the tower wants, every tensor in the processor's own shape."""
        if self.image_token is not None and not bool((ids == self.image_token).any()):
            raise UsageError(
                f"{task.id}: the processor's image token {self.image_token} is not in the prompt it made; processor "
                "and model are of different kinds"
            )
        if "token_type_ids" in found and "token_type_ids" not in self.token_inputs(ids, len(ids)):
            kind = self.config.model_type
            raise UsageError(
                f"{task.id}: {type(self.processor).__name__} marks images for attention in both directions: register "
                f'a renderer "{kind}" whose token_inputs give token_type_ids (examples/vlm_family.py), with --use'
            )
        told_elsewhere = {"input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"}
        return {name: tensor for name, tensor in found.items() if name not in told_elsewhere}

    # --- the text --------------------------------------------------------------------------------

    def _as_it_is(self, task: Task) -> str:
        if not isinstance(task.prompt, str):
            raise UsageError(f"{task.id}: without a chat template (--no-chat, chat=False) a text is read, not messages")
        return whole(task.prompt)

    def render(self, messages: list[dict[str, Any]]) -> str:
        """Chat messages as text, up to where the model speaks or goes on with the last message: by the chat template.

        Raises:
            UsageError: there is no template.
        """
        owner = self.processor if getattr(self.processor, "chat_template", None) else self.tokenizer
        if not getattr(owner, "chat_template", None):
            raise UsageError(
                f"{type(self.processor).__name__} has no chat template: set its chat_template, or have prompts read as "
                "they are: --no-chat, or chat=False of the renderer"
            )
        begun = messages[-1]["role"] == "assistant"
        how = {"add_generation_prompt": not begun, "continue_final_message": begun}
        text: str = owner.apply_chat_template(messages, **how, tokenize=False)
        return text

    def _messages(self, task: Task, images: int) -> list[dict[str, Any]]:
        asked = image_places(task.prompt, task.id)
        given = [{"role": "user", "content": task.prompt}] if isinstance(task.prompt, str) else list(task.prompt)
        if given and given[-1]["role"] == "assistant" and not any(b.get("text", "?") for b in _blocks_of(given[-1])):
            given = given[:-1]  # nothing that the answer could go on from
        if not given:
            raise UsageError(f"{task.id}: a prompt has one message or more")
        messages = [
            {**mapped(self.plain, {**message, "content": None}), "content": _blocks(task.id, message["content"])}
            for message in given
        ]
        if images and not asked:
            first = next((m for m in messages if m["role"] == "user"), messages[0])
            first["content"] = [{"type": "image"}] * images + first["content"]
        elif asked != images:
            raise UsageError(f"{task.id}: {asked} image blocks in the messages, {images} images in the task")
        for message in messages:
            message["content"] = self.plain.blocks(message["content"])
            if not self.sees:
                message["content"] = "".join(block["text"] for block in message["content"])
        return messages

    def _check_eyes(self, task: Task) -> None:
        if task.images and not self.sees:
            raise UsageError(
                f"{task.id} has {len(task.images)} images, but {type(self.tokenizer).__name__} reads text alone"
            )

    def _check_placeholders(self, task: Task, text: str, images: int) -> None:
        token = getattr(self.processor, "image_token", None)
        if token is None:
            return
        count = text.count(str(token))
        if images and self.chat and count == 0:
            raise UsageError(
                f"{task.id}: the chat template of {type(self.processor).__name__} leaves images out; it needs one "
                f"that writes {token} for each"
            )
        if count != images:
            raise UsageError(
                f"{task.id}: {count} image placeholders ({token}) in the text, {images} images in the task"
            )

    # --- answers ---------------------------------------------------------------------------------

    def tokens(self, text: str) -> Tensor:
        ids = self.tokenizer(self.plain(text), add_special_tokens=False)["input_ids"]
        end = self.tokenizer.eos_token_id if self.turn_end is None else self.turn_end
        return torch.tensor([*ids, end if end in self.ends else min(self.ends)], dtype=torch.long)

    def closing(self, last: int) -> Tensor:
        ends = [] if self.turn_end in (None, last) else [self.turn_end]
        return torch.tensor(ends, dtype=torch.long)

    def reply(self, text: str, images: Sequence[Any] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """What a user's message is between two turns of the model, in the chat template's words."""
        task = Task("reply", [{"role": "user", "content": text}], tuple(images))
        self._check_eyes(task)
        content = self._messages(task, len(images))[0]["content"]
        end = self.tokenizer.eos_token if self.turn_end is None else self.tokenizer.decode([self.turn_end])
        rendered = between_turns(self.render, content, str(end))
        found = self._read(task, rendered, special=False)
        return found.ids, dict(found.inputs)

    def shorten(self, text: str, tokens: int) -> str:
        text = whole(text)
        head = text[: 100 * tokens]  # hardly a token is longer
        if not getattr(self.tokenizer, "is_fast", False):
            return super().shorten(text, tokens)
        places = self.tokenizer(self.plain(head), add_special_tokens=False, return_offsets_mapping=True)
        ends = [after for _, after in places["offset_mapping"]]
        if len(ends) <= tokens:
            return shortened(text, len(head))
        return shortened(self.plain(head), ends[tokens - 1] if tokens else 0)

    def text(self, ids: Tensor) -> str:
        said: str = self.tokenizer.decode(ids.tolist(), skip_special_tokens=True)
        return said


class IdeficsRenderer(ProcessorRenderer):
    """Idefics 2 and 3 and SmolVLM, whose processors put images along the second axis and pad them to one size."""

    def join(self, first: Mapping[str, Tensor], more: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Stacked along the second axis: ``pixel_attention_mask`` is [1, N, H, W]."""
        parts = [part for part in (first, more) if part]
        height, width = (max(part["pixel_attention_mask"].shape[axis] for part in parts) for axis in (-2, -1))

        def padded(values: Tensor) -> Tensor:
            return pad(values, (0, width - values.shape[-1], 0, height - values.shape[-2]))

        return {name: torch.cat([padded(part[name]) for part in parts], 1) for name in parts[0]}


def image_places(prompt: Any, name: str) -> int:
    """How many blocks {"type": "image"} chat messages have; 0 for a text.

    Raises:
        UsageError: neither a text nor messages.
    """
    if isinstance(prompt, str):
        return 0
    found = 0
    for message in prompt if isinstance(prompt, list | tuple) else [None]:
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise UsageError(f'{name}: a prompt is a text or a list of {{"role": ..., "content": ...}}')
        found += sum(block["type"] == "image" for block in _blocks(name, message["content"]))
    return found


def _blocks(name: str, content: Any) -> list[dict[str, Any]]:
    """A message's content as blocks of text and places of images."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    blocks = []
    for block in content if isinstance(content, Sequence) else [content]:
        kind = block.get("type") if isinstance(block, Mapping) else None
        if kind == "text" and isinstance(block.get("text"), str):
            blocks.append({"type": "text", "text": block["text"]})
        elif kind == "image":
            blocks.append({"type": "image"})
        else:
            raise UsageError(
                f'{name}: a block is {{"type": "text", "text": ...}} or {{"type": "image"}} with the image in '
                f"task.images, not {str(block)[:60]}"
            )
    return blocks


def _blocks_of(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    return _blocks("", message["content"])


def _beyond(vocabulary: int, tokenizer: Any) -> set[int]:
    """Ids that the model has and the tokenizer has not: padding of the vocabulary, which no text shows."""
    return set(range(vocabulary)) - set(tokenizer.get_vocab().values())


def _public(owner: Any) -> dict[str, Any]:
    """Attributes, and the special tokens that a tokenizer names (``context_image_token`` of InternVL, ...)."""
    named = getattr(owner, "special_tokens_map", None) or {}
    return {name: value for name, value in vars(owner).items() if not name.startswith("_")} | dict(named)


def _ids(value: Any, tokenizer: Any) -> set[int]:
    """Ids from an id, a token, or a list of either."""
    if isinstance(value, bool) or value is None:
        return set()
    if isinstance(value, int):
        return {value} if value >= 0 else set()
    if isinstance(value, str):
        number = tokenizer.convert_tokens_to_ids(value)
        return {number} if isinstance(number, int) else set()
    return set().union(*(_ids(item, tokenizer) for item in value)) if isinstance(value, list | tuple) else set()
