"""Untrusted text: what users, tools and policies write stays text, whatever control tokens it spells.

``Plain`` is the one door from such text to ids: prompts, replies and answers go through it as ``Renderer.plain``, and
so do what judges read and the instructions of robots.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

ROUNDS = 8
"""How often a text is read again after what it spelt was broken up."""
_UNKNOWN = "\ufffd"


def whole(text: str) -> str:
    """A text without halves of surrogate pairs: joined where both stand there, else U+FFFD."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def has_half(text: str) -> bool:
    """Whether a text holds half of a surrogate pair, which no encoding writes."""
    return whole(text) != text


def mapped(change: Callable[[str], str], value: Any) -> Any:
    """Messages, or a part of them, with every text changed; names of fields stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: mapped(change, inner) for key, inner in value.items()}
    return [mapped(change, inner) for inner in value] if isinstance(value, list | tuple) else value


def shortened(text: str, kept: int) -> str:
    """The first characters of a text, and how many are left out."""
    return text if kept >= len(text) else f"{text[:kept]}\n... ({len(text) - kept} more characters)"


def by_bytes(text: str, tokens: int) -> str:
    """A text of at most so many tokens of any tokenizer: none of them is less than a byte."""
    text = whole(text)
    head = text[:tokens].encode()[:tokens].decode(errors="ignore")
    return shortened(text, len(head))


class Plain:
    """Texts -> the same texts, of which a tokenizer makes no control token: each one spelt out is broken by a space.

    Whether it worked is read from the ids, since normalisation can make a control token of other characters.

    Args:
        tokenizer: of transformers.
        further: tokens that its special ones do not name, such as those between turns.

    Attributes:
        ids: those of control tokens.
    """

    def __init__(self, tokenizer: Any, further: Iterable[str] = ()) -> None:
        self.tokenizer = tokenizer
        added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        names = {*special, *tokenizer.all_special_tokens, *further, "<|placeholder|>", "<placeholder>"}
        self.names = frozenset(name for name in names if name.strip())
        ids = {added[name] for name in self.names if name in added} | set(tokenizer.all_special_ids)
        self.ids = frozenset(ids - {tokenizer.unk_token_id})
        longest_first = sorted(self.names, key=len, reverse=True)
        self._spelt = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def __call__(self, text: str) -> str:
        text = whole(text)
        if self._spelt is not None:
            text = self._spelt.sub(lambda found: _broken(found[0]), text)
        for attempt in range(ROUNDS):
            spans = self._spans(text)
            if not spans:
                break
            for first, after in reversed(spans):
                middle = _broken(text[first:after]) if attempt < ROUNDS // 2 else _UNKNOWN
                text = text[:first] + middle + text[after:]
        return text

    def spelt(self, text: str) -> list[str]:
        """The control tokens that a text spells."""
        return [] if self._spelt is None else self._spelt.findall(text)

    def blocks(self, blocks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """A message's blocks; texts that spell a control token together become one block."""
        found: list[dict[str, Any]] = []
        for is_text, run in groupby(blocks, lambda block: block["type"] == "text"):
            same = [dict(block) for block in run]
            said = "".join(block["text"] for block in same) if is_text else ""
            plain = self(said)
            found += same if plain == said else [{"type": "text", "text": plain}]
        return found

    def _spans(self, text: str) -> list[tuple[int, int]]:
        """Where in a text the tokenizer still finds control tokens."""
        fast = bool(getattr(self.tokenizer, "is_fast", False))
        read = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=fast)
        if not self.ids.intersection(read["input_ids"]):
            return []
        if not fast:  # a tokenizer that does not tell where: nothing of it is kept
            return [(0, len(text))]
        places = zip(read["input_ids"], read["offset_mapping"], strict=True)
        return [(first, after) for number, (first, after) in places if number in self.ids and after > first]


def plain_of(processor: Any) -> Plain:
    """Of a processor or a tokenizer: what it marks pictures with is a control token, too."""
    marks = [name for key, name in vars(processor).items() if key.endswith("_token") and isinstance(name, str)]
    return Plain(getattr(processor, "tokenizer", processor), marks)


def _broken(name: str) -> str:
    return f"{name[:-1]} {name[-1]}" if len(name) > 1 else _UNKNOWN
