"""Limits: bytes of what is kept, tokens that a model can read, and what is found before a run begins."""

from __future__ import annotations

import gc
import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from autotelic.errors import UsageError
from autotelic.testing import vlms as tiny
from autotelic.types import Task
from autotelic.vlm.asking import PolicyAsker
from autotelic.vlm.backbone import Prompt
from autotelic.vlm.conversation import Conversation, Reply
from autotelic.vlm.keeping import FeatureCache, PromptStore
from autotelic.vlm.policy import TokenPolicy
from autotelic.vlm.processing import ProcessorRenderer
from autotelic.vlm.reach import reach_of
from autotelic.vlm.renderer import Features


def picture(seed: int, height: int = 32, width: int = 32) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def policy(family: str, **options: Any) -> TokenPolicy:
    model, processor = tiny.text(family) if family in tiny.TEXTS else tiny.vlm(family)
    return TokenPolicy.of(model, processor, horizon=4, **options)


# --- bytes -------------------------------------------------------------------------------------------------------


def made(task: Task) -> Prompt:
    """A prompt of 100 bytes: 8 of ids, 92 of pixels."""
    return Prompt(task.id, torch.zeros(1, dtype=torch.long), {"pixels": torch.zeros(92, dtype=torch.uint8)})


def test_prompts_are_kept_up_to_a_limit_in_bytes_the_oldest_going_first() -> None:
    store, calls = PromptStore(320), list[str]()

    def make(task: Task) -> Prompt:
        calls.append(task.id)
        return made(task)

    tasks = [Task(name, "q") for name in "abcd"]  # 102 bytes each with their names
    for task in tasks[:3]:
        store.prompts([task], make)
    assert store.held == 3 * 102 and len(store) == 3
    first = store.prompts(tasks[:1], make)[0]  # asked again: now the youngest
    store.prompts(tasks[3:], make)
    assert store.held == 3 * 102 and len(store) == 3
    assert store.prompts(tasks[:1], make)[0] is first
    store.prompts(tasks[1:2], make)
    assert calls == ["a", "b", "c", "d", "b"], "b was the oldest"


def test_the_prompts_of_one_call_stay_whatever_the_limit() -> None:
    store = PromptStore(10)
    tasks = [Task(name, "q") for name in "abc"]
    one = store.prompts([*tasks, tasks[0]], made)
    assert one[0] is one[3] and len(store) >= 3
    assert [a is b for a, b in zip(store.prompts(tasks, made), one, strict=False)] == [True] * 3
    store.prompts([Task("d", "q")], made)
    assert len(store) == 1 and store.held == 102


@pytest.mark.parametrize("form", ["array", "tensor", "pil", "path"])
def test_an_image_that_is_written_over_is_read_anew_and_others_are_not(form: str, tmp_path: Path) -> None:
    pixels, path = picture(0), tmp_path / "p.png"
    Image.fromarray(pixels).save(path)
    image: Any = {
        "array": pixels, "tensor": torch.from_numpy(pixels.copy()), "pil": Image.open(path), "path": str(path)
    }[form]  # fmt: skip
    store, task = PromptStore(10**6), Task("q", "?", (image,))
    before = store.prompts([task], made)[0]
    assert store.prompts([task], made)[0] is before
    if form == "pil":
        image.paste((1, 2, 3), (0, 0, 4, 4))
    elif form == "path":
        Image.fromarray(picture(1, 40)).save(path)
    else:
        image[3, 3, 0] += 1
    assert store.prompts([task], made)[0] is not before
    assert store.held == 102, "what was replaced is not counted"
    assert store.prompts([Task("q", "?", (picture(0),))], made)[0] is not before, "an equal image is another object"


def test_features_go_with_their_prompt_and_by_bytes() -> None:
    cache = FeatureCache(100)
    prompts: list[Any] = [made(Task(name, "q")) for name in "abc"]
    for prompt in prompts[:2]:
        cache.put(prompt, 1, Features(torch.zeros(1, 10)))  # 40 bytes
    assert cache.held == 80 and cache.get(prompts[0], 1) is not None and cache.get(prompts[0], 2) is None
    cache.put(prompts[2], 1, Features(torch.zeros(1, 10)))
    assert cache.held == 80 and cache.get(prompts[1], 1) is None, "the least recently used"
    cache.put(prompts[2], 2, Features(torch.zeros(1, 5)))
    assert cache.held == 60 and cache.get(prompts[2], 1) is None
    prompts.clear()
    del prompt
    gc.collect()
    assert cache.held == 0 and not cache._known
    cache.put(keep := made(Task("large", "q")), 1, Features(torch.zeros(1, 50)))
    assert cache.held == 0 and cache.get(keep, 1) is None


def test_answers_do_not_depend_on_what_is_kept() -> None:
    tasks = [Task(str(i), "what is red ?", (picture(i),)) for i in range(6)]
    outputs = []
    for limit in (0, 60_000, 2**30):  # a prompt has 25,000 bytes
        speaker = policy("qwen2_vl", freeze_vision=True, feature_bytes=limit)
        speaker.renderer.store.limit = limit
        said = [r for _ in range(2) for i in range(0, 6, 2) for r in speaker.act(tasks[i : i + 2], 2, key=(1,))]
        outputs.append([r.payload["tokens"].tolist() for r in said])
        assert speaker.renderer.store.held <= max(limit, 50_000)
    assert outputs[0] == outputs[1] == outputs[2]


# --- tokens ------------------------------------------------------------------------------------------------------


def text_model(**changes: Any) -> tuple[Any, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    reader = tiny.tokenizer()
    reader.chat_template = tiny.template()
    return LlamaForCausalLM(LlamaConfig(**tiny.text_sizes(reader) | changes)).eval(), reader


@pytest.mark.parametrize(
    ("rope", "tokens", "hard"),
    [
        ({"rope_type": "default", "rope_theta": 1e4}, 64, False),
        ({"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}, 64, False),
        ({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, 64, True),
        ({"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 32}, 64, False),
    ],
)
def test_how_far_a_model_can_read(rope: dict[str, Any], tokens: int, hard: bool) -> None:
    reach = reach_of(text_model(max_position_embeddings=64, rope_parameters=rope)[0])
    assert reach is not None and (reach.tokens, reach.hard) == (tokens, hard)
    assert (rope["rope_type"] in reach.why) == hard


def test_the_limit_is_the_sum_of_question_and_answer_to_the_token() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    speaker = TokenPolicy.of(*text_model(max_position_embeddings=16, rope_parameters=rope), horizon=4)
    size = len(speaker.renderer.prompts([Task("q", "red")])[0].ids)
    fits, over = (Task("q", " ".join(["red"] * (1 + 12 - size + more))) for more in (0, 1))
    assert len(speaker.act([fits], 1)[0].mask) <= 4
    with pytest.raises(
        UsageError, match=r"q: a question of 13 tokens and an answer of up to 4 pass 16 tokens, and .*dyna"
    ):
        speaker.act([over], 1)
    speaker.check_tasks([fits])
    with pytest.raises(UsageError, match=r"q: the question and an answer of up to 4 tokens are 17 tokens long"):
        speaker.check_tasks([over])
    (shown,) = speaker.encode([fits], ["red " * 9])
    with pytest.raises(UsageError, match="pass 16 tokens"):
        speaker.collate([shown])
    assert PolicyAsker(speaker, live=True).rightness([fits], ["red " * 90]) == [0.0], "too long to be read is not right"


def test_a_conversation_ends_where_the_model_cannot_read_on() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    speaker = TokenPolicy.of(*text_model(max_position_embeddings=24, rope_parameters=rope), horizon=4)
    speaker.renderer.ends |= frozenset(range(3, 30))
    for rollout in Conversation(speaker, lambda task, turns: Reply("how many ?"), turns=9).act([Task("q", "red")], 4):
        whole = len(speaker.renderer.prompts([rollout.task])[0].ids) + int(rollout.payload["length"])
        assert whole <= 24 and rollout.info["truncated"]


# --- before a run ------------------------------------------------------------------------------------------------


def test_pictures_are_tried_once_per_odd_shape_and_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    speaker = policy("qwen2_vl")
    tried: list[str] = []
    prompt = ProcessorRenderer.prompt
    monkeypatch.setattr(ProcessorRenderer, "prompt", lambda self, task: tried.append(task.id) or prompt(self, task))
    narrow, usual = picture(0, 33, 900), picture(0, 64, 64)
    speaker.check_tasks([Task("a", "?", (narrow,)), Task("b", "?", (narrow,)), *[Task("c", "?", (usual,))] * 50])
    assert tried == ["a"]
    with pytest.raises(UsageError, match=r"d: image 2 of 1200 x 4 pixels: .*aspect ratio"):
        speaker.check_tasks([Task("d", "?", (usual, picture(0, 4, 1200)))])


def test_odd_questions_are_told_once_in_a_line(caplog: pytest.LogCaptureFixture) -> None:
    speaker = TokenPolicy.of(*text_model(max_position_embeddings=16), horizon=4)
    odd = [Task(f"q{i}", "red <eos> blue " + "red " * 20) for i in range(3)]
    with caplog.at_level(logging.WARNING):
        speaker.check_tasks([Task("q", "red"), *odd])
    first, second = caplog.messages
    assert first.startswith("3 questions spell control tokens of the model, such as <eos> in q0")
    assert second.startswith("3 questions are longer, with their answers, than 16 tokens, such as q0")


def test_without_a_template_the_places_of_images_are_the_texts_own() -> None:
    speaker = policy("llava", renderer=partial(ProcessorRenderer, chat=False))
    speaker.check_tasks([Task("q", "<image> what ?", (picture(0),))])
    assert speaker.act([Task("q", "<image> what ?", (picture(0),))], 1)
