"""Pretrained judges of progress: by hand with a stub speaker, and tiny random models for the way real ones take."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from autotelic.errors import UsageError
from autotelic.rewards.audit import audit_progress
from autotelic.rewards.models.exhibits import Prompt
from autotelic.rewards.models.vlm import VLM, Token, Written
from autotelic.rewards.progress.clip_progress import CLIPProgress
from autotelic.rewards.progress.estimates import ask
from autotelic.rewards.progress.vlm_progress import GVL, VLAC, TOPReward
from autotelic.testing.vlms import vlm

from .test_rewards_hub import clip_config, random_weights, save_tokenizer

Frames = NDArray[np.uint8]


def clip(*greys: int) -> Frames:
    return np.repeat(np.array(greys, np.uint8), 8 * 8 * 3).reshape(-1, 8, 8, 3)


def grey(picture: Image.Image | str) -> int:
    assert isinstance(picture, Image.Image)
    return int(np.asarray(picture)[0, 0, 0])


class Stub:
    """A speaker that answers by a rule and remembers what it was asked."""

    def __init__(
        self, write: Callable[[Prompt], Written | str] = lambda p: "", log: Callable[[Prompt], float] = lambda p: 0.0
    ) -> None:
        self.rule, self.log = write, log
        self.asked: list[Prompt] = []
        self.words: set[str] = set()

    def write(self, prompts: Sequence[Prompt], tokens: int) -> list[Written]:
        self.asked += prompts
        answers = [self.rule(prompt) for prompt in prompts]
        return [Written(answer) if isinstance(answer, str) else answer for answer in answers]

    def log_probability(self, prompts: Sequence[Prompt], word: str) -> list[float]:
        self.asked += prompts
        self.words.add(word)
        return [self.log(prompt) for prompt in prompts]


# GVL ----------------------------------------------------------------------------------------------


def reading(prompt: Prompt) -> str:
    """Says of every frame what its grey is, in percent."""
    shown = [(prompt[i - 1], prompt[i]) for i in range(3, len(prompt)) if isinstance(prompt[i], Image.Image)]
    return "\n".join(f"{name} {grey(picture)} %" for name, picture in shown)


def test_gvl_puts_shuffled_answers_back_in_order() -> None:
    speaker = Stub(reading)
    judge = GVL(speaker)
    shown = clip(0, 10, 20, 30, 45, 60, 80, 100)
    assert judge.trace(shown, "push") == pytest.approx([0, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0])
    assert judge([shown, clip(0, 7)], None, ["push", "push"]) == pytest.approx([1.0, 0.07])
    assert judge.unread == 0


def test_gvl_shows_the_first_frame_first_and_the_others_in_a_fixed_disorder() -> None:
    speaker = Stub(reading)
    shown = clip(*range(0, 100, 10))
    for _ in range(2):
        GVL(speaker).trace(shown, "push it")
    first, again = speaker.asked
    greys = [grey(part) for part in first if not isinstance(part, str)]
    assert greys[0] == 0
    assert sorted(greys[1:]) == list(range(10, 100, 10)) != greys[1:]
    assert [grey(part) for part in again if not isinstance(part, str)] == greys
    assert "push it" in str(first[0])
    assert "0 %" in str(first[1])


def test_gvl_asks_about_some_frames_and_draws_lines_between() -> None:
    speaker = Stub(reading)
    values = GVL(speaker, frames=3).trace(clip(0, 1, 50, 99, 100), "push")
    assert values == pytest.approx([0, 0.25, 0.5, 0.75, 1.0])
    assert sum(not isinstance(part, str) for part in speaker.asked[0]) == 3


@pytest.mark.parametrize(
    ("answer", "values", "unread"),
    [
        ("I cannot tell.", [0, 0, 0], 2),
        ("Frame 1: 140 %\nFrame 2: -3", [0, 0, 0], 2),
        ("frame 1 : about 30.5%, and Frame 2: 30.5 %.", [0, 0.305, 0.305], 0),
        ("Frame 1: 10 %\nFrame 1: 90 %\nFrame 2: 60 %", None, 1),
        ("Frame 7: 10 %", [0, 0, 0], 2),
        ("Frame 1: -30 %, Frame 2 - 30 %", None, 1),
        ("", [0, 0, 0], 2),
    ],
)
def test_gvl_answers_that_cannot_be_read_are_counted(answer: str, values: list[float] | None, unread: int) -> None:
    judge = GVL(Stub(lambda prompt: answer))
    found = judge.trace(clip(0, 50, 100), "push")
    assert judge.unread == unread
    assert found[0] == 0 and np.isfinite(found).all()
    if values is not None:
        assert found == pytest.approx(values)


# TOPReward ----------------------------------------------------------------------------------------


def brightness(prompt: Prompt) -> float:
    """Log-probability: less certain the darker the last frame."""
    return (grey(prompt[-2]) - 100) / 50


def test_top_reward_is_the_probability_of_true() -> None:
    speaker = Stub(log=brightness)
    judge = TOPReward(speaker)
    assert judge([clip(0, 50), clip(0, 100)], None, ["push", "pull"]) == pytest.approx([math.exp(-1), 1.0])
    assert speaker.words == {"true"}
    assert 'task "pull"' in str(speaker.asked[1][-1])


def test_top_rewards_trace_is_scaled_over_growing_prefixes() -> None:
    speaker = Stub(log=brightness)
    values = TOPReward(speaker, prefixes=3).trace(clip(10, 20, 60, 20, 30), "push")
    # prefixes of 1, 3 and 5 frames say 10, 60 and 30: scaled 0, 1, 0.4, and lines between
    assert values == pytest.approx([0, 0.5, 1.0, 0.7, 0.4])
    assert [len(prompt) - 1 for prompt in speaker.asked] == [1, 3, 5]


def test_top_reward_shows_some_frames_of_a_long_clip_in_order() -> None:
    speaker = Stub(log=brightness)
    TOPReward(speaker, frames=3)([clip(0, 1, 2, 3, 4)], None, ["push"])
    assert [grey(part) for part in speaker.asked[0][:-1]] == [0, 2, 4]


def test_top_reward_that_never_changes_is_one_throughout() -> None:
    assert TOPReward(Stub(log=lambda prompt: -2.0)).trace(clip(1, 2), "push") == pytest.approx([1, 1])


# VLAC ---------------------------------------------------------------------------------------------


def test_vlac_reads_a_signed_share() -> None:
    speaker = Stub(lambda prompt: f"{grey(prompt[3]) - grey(prompt[1]):+d}")
    judge = VLAC(speaker)
    answers = judge(clip(80, 10), None, ["push", "push"], clip(30, 60))
    assert answers == pytest.approx([0.5, -0.5])
    first = speaker.asked[0]
    assert [type(part).__name__ for part in first] == ["str", "Image", "str", "Image", "str"]
    assert str(first[0]) == "First picture: " and "push" in str(first[4])


def test_vlac_takes_anothers_wording() -> None:
    speaker = Stub(lambda prompt: "5")
    question = "Now {second} then {first}; {instruction} <score>"
    VLAC(speaker, question=question)(clip(2), None, ["push"], clip(1))
    prompt = speaker.asked[0]
    assert (prompt[0], grey(prompt[1]), prompt[2], grey(prompt[3]), prompt[4]) == (
        "Now ",
        2,
        " then ",
        1,
        "; push <score>",
    )


@pytest.mark.parametrize("answer", ["", "better", "250", "-101"])
def test_vlac_answers_that_cannot_be_read_are_no_advance(answer: str) -> None:
    judge = VLAC(Stub(lambda prompt: answer))
    assert judge(clip(1), None, ["push"], clip(0)) == pytest.approx([0.0])
    assert judge.unread == 1


def test_vlac_weighs_likely_figures_place_by_place() -> None:
    tokens = (Token("-"), Token("4", (("4", 0.6), ("2", 0.2), ("x", 0.2))), Token("0", (("0", 0.5), ("6", 0.5))))
    judge = VLAC(Stub(lambda prompt: Written("-40", tokens)))
    # tens: (4 * .6 + 2 * .2) / .8 = 3.5; ones: 3 -> -38
    assert judge(clip(1), None, ["push"], clip(0)) == pytest.approx([-0.38])
    plain = VLAC(Stub(lambda prompt: Written("-40", tokens)), weighted=False)
    assert plain(clip(1), None, ["push"], clip(0)) == pytest.approx([-0.4])


def test_vlac_weighs_tokens_of_several_figures() -> None:
    tokens = (Token(" 35", (("35", 0.5), ("45", 0.5), ("4", 0.5))), Token("%"), Token("9", (("9", 1.0),)))
    judge = VLAC(Stub(lambda prompt: Written("35%9", tokens)))
    assert judge(clip(1), None, ["push"], clip(0)) == pytest.approx([0.4])


# bad input ----------------------------------------------------------------------------------------


def test_bad_input_gets_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r'unknown field of a judge.s question "task"'):
        GVL(Stub(), task="{task}")
    with pytest.raises(ValueError, match=r"needs the field \{first\}"):
        VLAC(Stub(), question="{second} {instruction}")
    with pytest.raises(ValueError, match=r"uint8 \[T, H, W, 3\], and was given float32 \[2, 21\]"):
        TOPReward(Stub())([np.zeros((2, 21), np.float32)], None, ["push"])
    with pytest.raises(ValueError, match="needs references"):
        VLAC(Stub())(clip(1), None, ["push"])
    with pytest.raises(ValueError, match="at least 2 are needed"):
        GVL(Stub(), frames=1)
    with pytest.raises(UsageError, match="model and processor together"):
        VLM(model=object())
    with pytest.raises(UsageError, match=re.escape(f'cannot load "{tmp_path}"')):
        VLM(str(tmp_path)).log_probability([("a",)], "true")


# real classes -------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["qwen2_vl", "smolvlm"])
def tiny(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return vlm(request.param)


def pictures(n: int) -> Frames:
    return np.random.default_rng(3).integers(0, 255, (n, 32, 32, 3), dtype=np.uint8)


def prompts_of(frames: Frames) -> list[Prompt]:
    return [("what is", Image.fromarray(frame), "red ?") for frame in frames]


def test_a_words_log_probability_is_the_models(tiny: tuple[Any, Any]) -> None:
    model, processor = tiny
    asked = VLM(model=model, processor=processor)
    prompt = prompts_of(pictures(1))[0]
    content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": p} for p in prompt]
    inputs = processor.apply_chat_template(
        [[{"role": "user", "content": content}]],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1]
    expected = logits.log_softmax(-1)[processor.tokenizer.convert_tokens_to_ids("yes")].item()
    assert asked.log_probability([prompt], "yes") == pytest.approx([expected], abs=1e-5)


def test_batches_and_single_questions_agree_and_each_is_asked_once(tiny: tuple[Any, Any]) -> None:
    model, processor = tiny
    prompts = [*prompts_of(pictures(3)), ("is the circle red ?",), ("how many ?",)]
    together = VLM(model=model, processor=processor, batch_size=2)
    logs = together.log_probability([*prompts, prompts[0]], "yes")
    assert (together.asked, together.hits, together.calls) == (5, 1, 3)  # 2 + 1 with a picture, 2 without
    assert together.seconds > 0
    assert logs[-1] == logs[0]
    alone = [VLM(model=model, processor=processor).log_probability([prompt], "yes")[0] for prompt in prompts]
    assert logs[:5] == pytest.approx(alone, abs=1e-4)
    assert len({round(value, 6) for value in alone[:3]}) == 3, "the pictures make no difference"
    together.log_probability(prompts, "yes")
    assert (together.asked, together.calls) == (5, 3)
    together.log_probability(prompts[:1], "no")
    assert together.asked == 6


def test_forgetting_keeps_memory_bounded(tiny: tuple[Any, Any]) -> None:
    asked = VLM(model=tiny[0], processor=tiny[1], keep=2)
    prompts = [("is",), ("how",), ("what",)]
    assert len(asked.log_probability(prompts, "yes")) == 3
    asked.log_probability(prompts[:1], "yes")
    assert asked.asked == 4


def test_written_answers_are_greedy_with_their_likely_alternatives(tiny: tuple[Any, Any]) -> None:
    model, processor = tiny
    (answer,) = VLM(model=model, processor=processor).write(prompts_of(pictures(1)), 3)
    assert len(answer.tokens) <= 3
    for token in answer.tokens:
        chances = dict(token.alternatives)
        assert chances[token.text] == max(chances.values()) <= 1
        assert min(chances.values()) >= 0.1 * max(chances.values()) - 1e-6


def test_a_model_in_training_stays_in_training(tiny: tuple[Any, Any]) -> None:
    model, processor = tiny
    model.train()
    try:
        VLM(model=model, processor=processor).log_probability([("is",)], "yes")
        assert model.training
    finally:
        model.eval()


def test_a_word_in_many_tokens_is_refused(tiny: tuple[Any, Any]) -> None:
    with pytest.raises(UsageError, match='splits "true" in every spelling'):
        VLM(model=tiny[0], processor=tiny[1]).log_probability([("is",)], "true")


def test_all_judges_run_on_a_real_class_and_can_be_audited() -> None:
    model, processor = vlm("qwen2_vl")
    speaker = VLM(model=model, processor=processor)
    speaker.log_probability = lambda prompts, word: VLM.log_probability(speaker, prompts, "yes")  # type: ignore[method-assign]  # no word "true" here
    frames = pictures(5)
    episodes = [
        SimpleNamespace(observations=np.zeros((5, 1)), frames=frames[order], instruction="red circle", success=won)
        for order, won in (([0, 1, 2, 3, 4], True), ([0, 2, 1, 4, 3], False))
    ]
    judges: list[Any] = [GVL(speaker, frames=3), TOPReward(speaker, prefixes=3), VLAC(speaker)]
    for judge in judges:
        audit = audit_progress(judge, episodes)
        assert audit.auc in (0, 0.5, 1)
        assert np.isfinite(audit.voc_success)
    before = speaker.asked
    for judge in judges:
        audit_progress(judge, episodes)
    assert speaker.asked == before, "the same questions were asked again"


def test_judges_travel_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(TOPReward("some/model", frames=4))).frames == 4


# CLIP ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    from transformers import CLIPImageProcessor, CLIPModel

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("clip")
    random_weights(CLIPModel(clip_config())).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    save_tokenizer(folder)
    return str(folder)


def embeddings(folder: str, frames: Frames, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors by transformers' own processors."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder).eval()
    shown = AutoImageProcessor.from_pretrained(folder)([Image.fromarray(f) for f in frames], return_tensors="pt")
    read = AutoTokenizer.from_pretrained(folder)(texts, padding="max_length", max_length=10, return_tensors="pt")
    with torch.no_grad():
        seen = model.get_image_features(**shown).pooler_output
        said = model.get_text_features(input_ids=read["input_ids"]).pooler_output
    return torch.nn.functional.normalize(seen, dim=-1), torch.nn.functional.normalize(said, dim=-1)


def small(n: int) -> Frames:
    return np.random.default_rng(5).integers(0, 255, (n, 16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_clip_progress_is_the_papers_formula(tiny_clip: str, alpha: float) -> None:
    frames = small(3)
    seen, (goal, base) = embeddings(tiny_clip, frames, ["a red cat", "a dog"])
    line = (goal - base)[:, None]
    projection = alpha * (line @ line.T) / (line.T @ line) + (1 - alpha) * torch.eye(len(goal))
    expected = 1 - ((seen - goal) @ projection).norm(dim=-1) ** 2 / 2
    judge = CLIPProgress(tiny_clip, alpha=alpha, baseline="a dog", batch_size=2)
    assert judge.raw(frames, ["a red cat"] * 3) == pytest.approx(expected.numpy(), abs=1e-4)
    if alpha == 0:
        assert expected.numpy() == pytest.approx((seen @ goal).numpy(), abs=1e-5)
    assert judge(frames, None, ["a red cat"] * 3) == pytest.approx((expected.numpy() + 1) / 2, abs=1e-4)


def test_demonstrations_set_the_band(tiny_clip: str) -> None:
    frames = small(4)
    judge = CLIPProgress(tiny_clip, baseline="a dog")
    raw = judge.raw(frames, ["a cat"] * 4)
    rising = frames[np.argsort(raw)]
    judge.fit([SimpleNamespace(frames=rising, instruction="a cat")])
    values = ask(judge, rising, rising, ["a cat"] * 4)
    assert values[[0, -1]] == pytest.approx([0, 1], abs=1e-4)
    assert ((values >= 0) & (values <= 1)).all()
    low, high = sorted(raw)[0], sorted(raw)[-1]
    assert values[1] == pytest.approx((sorted(raw)[1] - low) / (high - low), abs=1e-4)
    assert judge.blind == []


def test_a_task_that_clip_does_not_see_is_named(tiny_clip: str) -> None:
    frames = small(4)
    judge = CLIPProgress(tiny_clip, baseline="a dog")
    falling = frames[np.argsort(-judge.raw(frames, ["a cat"] * 4))]
    judge.fit([SimpleNamespace(frames=falling, instruction="a cat")])
    assert judge.blind == ["a cat"]
    assert judge(frames, None, ["a cat"] * 4) == pytest.approx((judge.raw(frames, ["a cat"] * 4) + 1) / 2)


def test_clip_progress_refuses_what_it_cannot_use(tiny_clip: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="alpha is 2, not in"):
        CLIPProgress(tiny_clip, alpha=2)
    with pytest.raises(ValueError, match="sees frames"):
        CLIPProgress(tiny_clip).raw(np.zeros((2, 21), np.float32), ["a cat"] * 2)
    with pytest.raises(ValueError, match="have no frames"):
        CLIPProgress(tiny_clip).fit([SimpleNamespace(frames=None, instruction="a cat")])
    with pytest.raises(UsageError, match=re.escape(f'cannot load "{tmp_path}"')):
        CLIPProgress(str(tmp_path)).raw(small(1), ["a cat"])
