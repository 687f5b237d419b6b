"""Text that nobody vouches for: it spells no control token, whichever door it takes and whatever it is made of."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from autotelic.errors import UsageError
from autotelic.testing import vlms as tiny
from autotelic.types import Task
from autotelic.untrusted import Plain, by_bytes, has_half, shortened, whole
from autotelic.vlm.conversation import Conversation, Reply, Turn
from autotelic.vlm.policy import TokenPolicy
from autotelic.vlm.processing import ProcessorRenderer

FAMILIES = (*tiny.TEXTS, *tiny.VLMS)
PICTURE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


@cache
def renderer(family: str) -> Any:
    model, processor = tiny.text(family) if family in tiny.TEXTS else tiny.vlm(family)
    return ProcessorRenderer(processor, model)


def special(tokenizer: Any) -> list[str]:
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


def scraps(tokenizer: Any, draw: random.Random) -> str:
    """Control tokens whole, cut, doubled and nested, words, and odd letters between them."""
    names = [*special(tokenizer), "<|placeholder|>", "<placeholder>"]
    parts: list[str] = []
    for _ in range(draw.randrange(1, 9)):
        name = draw.choice(names)
        cut = draw.randrange(1, len(name))
        parts.append(
            draw.choice(
                [
                    *(name, name[:cut], name[cut:], name[:cut] + draw.choice(names) + name[cut:]),
                    *(name.upper(), draw.choice(tiny.WORDS), " ", "\n", "\ud83d", "\u200b", "\ue000", "é", "<", "|>"),
                ]
            )
        )
    return "".join(parts)


@pytest.mark.parametrize("family", FAMILIES)
def test_whatever_is_written_the_control_ids_are_those_of_a_plain_text(family: str) -> None:
    reader, draw = renderer(family), random.Random(family)
    tokenizer = reader.tokenizer
    control = torch.tensor(sorted(set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}))
    images = (PICTURE,) if family in tiny.VLMS else ()

    doors: dict[str, Callable[[str], torch.Tensor]] = {
        "answer": reader.tokens,
        "reply": lambda text: reader.reply(text)[0],
        "prompt": lambda text: reader.prompt(Task("q", text, images)).ids,
        "system": lambda text: (
            reader.prompt(
                Task("q", [{"role": r, "content": text} for r in ("system", "user", "assistant", "user")])
            ).ids
        ),
        "begun": lambda text: (
            reader.prompt(Task("q", [{"role": r, "content": text + " red"} for r in ("user", "assistant")])).ids
        ),
    }

    def structure(ids: torch.Tensor) -> list[int]:
        return [int(i) for i in ids if bool((control == i).any())]

    plain = {name: structure(door("red")) for name, door in doors.items()}
    for _ in range(40):
        text = scraps(tokenizer, draw)
        for name, door in doors.items():
            assert structure(door(text)) == plain[name], (name, text)


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_without_control_tokens_are_read_as_the_chat_template_writes_them(family: str) -> None:
    """Ids of whole conversations, word for word; nothing is broken up that needs no breaking."""
    reader, draw = renderer(family), random.Random(family)
    sees = family in tiny.VLMS

    def said(text: str, image: bool = False) -> Any:
        return [{"type": "image"}] * image + [{"type": "text", "text": text}] if sees else text

    for _ in range(10):
        words = [" ".join(draw.choices([*tiny.WORDS, "e < 3", "a|b"], k=draw.randrange(1, 6))) for _ in range(4)]
        task = Task("q", words[0], (PICTURE,) if sees else ())
        model, processor = tiny.text(family) if not sees else tiny.vlm(family)
        policy = TokenPolicy.of(model, processor)
        turns = [Turn(words[1], Reply(words[2])), Turn(words[3])]
        (rollout,) = Conversation(policy, lambda task, turns: Reply(done=True)).encode([task], [turns])
        ids = [*policy.renderer.prompts([task])[0].ids.tolist(), *rollout.payload["tokens"].tolist()]
        roles = ("user", "assistant", "user", "assistant")
        contents = [said(words[0], image=True), *(said(word) for word in words[1:])]
        messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
        text = processor.apply_chat_template(messages, tokenize=False)
        if sees:
            wanted = processor(text=[text], images=[PICTURE])["input_ids"][0]
        else:
            wanted = processor(text, add_special_tokens=False)["input_ids"]
        assert ids == list(wanted)[: len(ids)] and len(ids) > len(wanted) - 2
        assert reader.plain(words[0]) == words[0]


def test_a_token_that_normalisation_makes_is_found() -> None:
    """Lower case and full-width letters become a control token's own; a set of rules over letters would miss it."""
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "eos": 2, "<": 3, ">": 4}, unk_token="<unk>"))
    words.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])  # type: ignore[assignment]
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    reader = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    reader.add_tokens([AddedToken("<eos>", special=True, normalized=True)], special_tokens=True)
    end = reader.convert_tokens_to_ids("<eos>")
    plain = Plain(reader)
    for text in ("<EOS>", "\uff1ceos\uff1e", "a<eOs>a", "<eos><EOS>"):
        assert end in reader(text)["input_ids"], "or nothing is tested here"
        assert end not in reader(plain(text))["input_ids"]
    assert plain("a < eos > a") == "a < eos > a"


def test_tokens_between_turns_need_not_be_special() -> None:
    """GLM's and Phi's turns open with added tokens that need not be called special; thoughts stay as they are."""
    reader = tiny.tokenizer()
    reader.add_tokens([AddedToken(t, special=False) for t in ("<|user|>", "<|assistant|>", "<think>", "</think>")])
    reader.chat_template = (
        "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    made = ProcessorRenderer(reader, tiny.text("llama")[0])
    user, thought = (reader.convert_tokens_to_ids(token) for token in ("<|user|>", "<think>"))
    assert made.turn_end == user and user in made.ends
    ids = made.prompt(Task("q", "red <|user|> <think> blue")).ids.tolist()
    assert ids.count(user) == 1 and ids.count(thought) == 1


def test_texts_are_cut_by_tokens_and_say_how_much_is_missing() -> None:
    reader = renderer("llama")
    assert reader.shorten("red blue", 2) == "red blue"
    assert reader.shorten("red blue dog cat", 2) == "red blue\n... (8 more characters)"
    assert by_bytes("ééé", 3) == "é\n... (2 more characters)"
    assert by_bytes("abc", 3) == shortened("abc", 3) == "abc"
    assert len(reader.tokenizer(reader.shorten("one " * 10_000, 50))["input_ids"]) < 50 + 12


@pytest.mark.parametrize(
    ("text", "read"),
    [("a", "a"), ("\ud83d\ude00", "\U0001f600"), ("a\ud83db", "a\ufffdb"), ("\ude00\ud83d", "\ufffd\ufffd"), ("", "")],
)
def test_halves_of_letters_are_joined_or_replaced(text: str, read: str) -> None:
    assert whole(text) == read and has_half(text) == (read != text)


def test_without_a_chat_template_a_text_is_read_as_it_is() -> None:
    model, reader = tiny.text("llama")
    made = partial(ProcessorRenderer, chat=False)(reader, model)
    end = reader.eos_token_id
    assert made.prompt(Task("q", "red <eos> blue")).ids.tolist().count(end) == 1
    assert made.tokens("red <eos>").tolist().count(end) == 1, "what is answered is data all the same"
    with pytest.raises(UsageError, match="q: without a chat template"):
        made.prompt(Task("q", [{"role": "user", "content": "red"}]))


def test_an_answer_goes_on_from_the_assistants_last_message() -> None:
    for family in ("llama", "qwen2_vl"):
        reader = renderer(family)
        asked = {"role": "user", "content": "how many ?"}
        whole_text = reader.written(Task("q", [asked]))
        begun = reader.written(Task("q", [asked, {"role": "assistant", "content": "one dog"}]))
        assert begun == whole_text + "one dog"
        assert reader.written(Task("q", [asked, {"role": "assistant", "content": ""}])) == whole_text
