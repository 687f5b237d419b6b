"""What rewards may return, and functions that were written for TRL."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autotelic.trainers.scoring import columns, score
from autotelic.types import Task

from .cases import Gives, Refuses, Required
from .rewards import CHAT, attempt, attempts, picture, scored, spoken, stated, totals

# --- what a reward may return -----------------------------------------------------------------------------------------

RETURNED: dict[str, tuple[Callable[[], Any], Required]] = {
    "vlm A19: a NumPy array": (lambda: np.array([1.0, 0.5]), Gives([1.0, 0.5])),
    "vlm A19: NumPy numbers in a list": (lambda: [np.float32(1), np.bool_(True)], Gives([1.0, 1.0])),
    "diffusion B13: an array of whole numbers": (lambda: np.array([1, 0]), Gives([1.0, 0.0])),
    "diffusion B13: a tensor in half precision": (
        lambda: torch.tensor([1.0, 0.5], dtype=torch.bfloat16),
        Gives([1.0, 0.5]),
    ),
    "diffusion B13: a column [B, 1] of a model": (lambda: torch.tensor([[1.0], [0.5]]), Gives([1.0, 0.5])),
    "diffusion B13: NaN means that it does not apply": (lambda: [math.nan, 0.5], Gives([None, 0.5])),
    "diffusion B13: NaN in an array": (lambda: np.array([1.0, np.nan]), Gives([1.0, None])),
    "vlm A18: one None": (lambda: [None, 0.5], Gives([None, 0.5])),
    "vlm A18: None for all": (lambda: [None, None], Gives([None, None])),
    "vlm A18: NaN for all": (lambda: torch.tensor([math.nan, math.nan]), Gives([None, None])),
    "vlm A19: a generator": (lambda: (x for x in (1.0, 0.5)), Gives([1.0, 0.5])),
    "an infinite number": (lambda: [1.0, math.inf], Refuses("planted.*inf.*task-1")),
    "minus infinity in an array": (lambda: np.array([-np.inf, 1.0]), Refuses("planted.*-inf.*task-0")),
    "diffusion B13: a 0-d tensor": (lambda: torch.tensor(1.0), Refuses("planted.*one number.*2 samples")),
    "a plain number": (lambda: 1.0, Refuses("planted.*float")),
    "diffusion B13: a matrix [B, B]": (lambda: torch.eye(2), Refuses(r"planted.*\[2, 2\].*diagonal")),
    "diffusion B13: a matrix [B, B] in NumPy": (lambda: np.eye(2), Refuses(r"planted.*\[2, 2\].*diagonal")),
    "diffusion B13: a matrix as lists": (lambda: np.eye(2).tolist(), Refuses("planted.*2 numbers.*1 segment")),
    "too few": (lambda: [1.0], Refuses("planted.*1 scores? for 2 samples")),
    "a text among numbers": (lambda: [1.0, "good"], Refuses("planted.*good.*task-1")),
    "a text": (lambda: "ab", Refuses("planted.*str")),
    "a complex number": (lambda: [1.0, 1j], Refuses("planted.*task-1")),
    "DDPO's pair (scores, info)": (lambda: ([1.0, 0.5], {}), Gives([1.0, 0.5])),
    "DDPO's pair of an array": (lambda: (np.array([1.0, 0.5]), {}), Gives([1.0, 0.5])),
    "a pair of numbers": (lambda: (1.0, 0.5), Gives([1.0, 0.5])),
}


def _returned(name: str) -> None:
    make, required = RETURNED[name]

    @stated(f"{name} from a reward", "trl rewards", required)
    def returned(folder: Path) -> object:
        def planted(completions: Any, **_: Any) -> Any:
            return make()

        return scored(planted, "a", "b")


for _name in RETURNED:
    _returned(_name)


@stated(
    "diffusion B13: a matrix is no scores per segment, however few samples",
    "trl rewards",
    Refuses("diagonal"),
)
def matrix_of_few(folder: Path) -> object:
    steps = torch.arange(5)
    rollouts = [replace(r, mask=steps >= 0, segments=steps, log_probs=steps * 0.0) for r in attempts("a", "b", "c")]
    return totals(rollouts, lambda **_: torch.eye(3))


@stated("scores per segment", "trl rewards", Gives([1.5, 0.0]))
def per_segment(folder: Path) -> object:
    steps = torch.arange(2)
    rollouts = [replace(r, mask=steps >= 0, segments=steps, log_probs=steps * 0.0) for r in attempts("a", "b")]
    return totals(rollouts, lambda **_: [[1.0, 0.5], torch.tensor([0.5, -0.5])])


# --- functions written for TRL ----------------------------------------------------------------------------------------


@stated("vlm A19: completions of a chat are messages", "trl rewards", Gives([1.0, 0.0]), modality="vlm")
def messages(folder: Path) -> object:
    def polite(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
        assert prompts[0][0]["role"] == "user" and completions[0][0]["role"] == "assistant"
        return [float("please" in completion[0]["content"]) for completion in completions]

    return scored(polite, "yes please", "no", prompt=CHAT)


@stated("vlm A19: completions of a plain prompt are strings", "trl rewards", Gives([3.0, 0.0]), modality="vlm")
def strings(folder: Path) -> object:
    def size(completions: list[str], **kwargs: Any) -> list[float]:
        return [float(len(completion)) for completion in completions]

    return scored(size, "yes", "")


@stated(
    "a chat and a plain prompt in one batch",
    "trl rewards",
    Gives([["list", "str"], 1.0, 1.0]),
    modality="vlm",
)
def chat_and_plain(folder: Path) -> object:
    from autotelic.rewards.text.verifiers import Exact

    kinds: list[str] = []

    def kind(completions: Any, **_: Any) -> list[float]:
        kinds.extend(type(completion).__name__ for completion in completions)
        return [0.0] * len(completions)

    rollouts = [attempt("7", "a", prompt=CHAT, reference="7"), attempt("7", "b", reference="7")]
    score(rollouts, kind)
    return [kinds, *totals(rollouts, Exact())]


@stated("outputs of a chat are what was said", "trl rewards", Gives(["yes", "no"]), modality="vlm")
def outputs_of_a_chat(folder: Path) -> object:
    return columns(attempts("yes", "no", prompt=CHAT))["outputs"]


@stated("vlm A19: the column answer", "trl rewards", Gives([1.0, 0.0]), modality="vlm")
def answer_column(folder: Path) -> object:
    def right(completions: Any, answer: Any, **kwargs: Any) -> list[float]:
        return [float(said == true) for said, true in zip(completions, answer, strict=True)]

    return scored(right, "7", "8", extra={"answer": "7"})


@stated("vlm A19: the column completion_ids", "trl rewards", Gives([2.0, 3.0]), modality="vlm")
def completion_ids(folder: Path) -> object:
    def count(completion_ids: Any, **kwargs: Any) -> list[float]:
        assert all(isinstance(number, int) for ids in completion_ids for number in ids)
        return [float(len(ids)) for ids in completion_ids]

    return totals([spoken([5, 1], "a"), spoken([7, 7, 1], "b")], count)


@stated("vlm A19: the argument trainer_state", "trl rewards", Gives([0.0, 0.0]), modality="vlm")
def trainer_state(folder: Path) -> object:
    def early(completions: Any, trainer_state: Any, **kwargs: Any) -> list[float]:
        return [trainer_state.global_step / max(1, trainer_state.max_steps) for _ in completions]

    return scored(early, "a", "b")


@stated("vlm A19: log_metric and log_extra", "trl rewards", Gives([0.25, "seen b"]), modality="vlm")
def logged(folder: Path) -> object:
    def tells(completions: Any, log_metric: Any = None, log_extra: Any = None, **kwargs: Any) -> list[float]:
        log_metric("share", 0.25)
        log_extra("read", [f"seen {text}" for text in completions])
        return [1.0] * len(completions)

    rollouts = attempts("a", "b")
    metrics = score(rollouts, tells)
    share = next(value for name, value in metrics.items() if name.endswith("share"))
    return [share, rollouts[1].info["logged/read"]]


@stated("vlm A19: an async function", "trl rewards", Gives([1.0, 2.0]))
def asynchronous(folder: Path) -> object:
    async def slow(completions: Any, **kwargs: Any) -> list[float]:
        await asyncio.sleep(0)
        return [float(len(completion)) for completion in completions]

    return scored(slow, "a", "bb")


@stated("vlm A19: async functions wait together", "trl rewards", Gives([3.0, 3.0]))
def together(folder: Path) -> object:
    """The first waits for what the second does."""
    from autotelic.rewards.reward import Reward

    met: dict[str, asyncio.Event] = {}

    async def first(completions: Any, **kwargs: Any) -> list[float]:
        await asyncio.wait_for(met.setdefault("here", asyncio.Event()).wait(), 5)
        return [1.0] * len(completions)

    async def second(completions: Any, **kwargs: Any) -> list[float]:
        met.setdefault("here", asyncio.Event()).set()
        return [2.0] * len(completions)

    return scored(Reward(first) + Reward(second), "a", "b")


@stated("an async function inside a running loop, as in a notebook", "trl rewards", Gives([1.0]))
def in_a_notebook(folder: Path) -> object:
    async def slow(completions: Any, **kwargs: Any) -> list[float]:
        await asyncio.sleep(0)
        return [1.0] * len(completions)

    async def cell() -> object:
        return scored(slow, "a")

    return asyncio.run(cell())


@stated("a function without **kwargs", "trl rewards", Gives([1.0, 0.0]))
def without_kwargs(folder: Path) -> object:
    def right(completions: Any, answer: Any) -> list[float]:
        return [float(said == true) for said, true in zip(completions, answer, strict=True)]

    return scored(right, "7", "8", extra={"answer": "7"})


@stated("vlm A19: what nobody has is refused when the run is built", "trl rewards", Refuses("solution"), modality="vlm")
def missing_column(folder: Path) -> object:
    from autotelic.calling import require_columns
    from autotelic.rewards.reward import Reward

    def checks(completions: Any, solution: Any, **kwargs: Any) -> list[float]:
        return [0.0] * len(completions)

    return require_columns(Reward(checks), [Task("a", "What is 7?", reference="7", extra={"answer": "7"})])


DDPO = "diffusion B13: DDPO's (images, prompts, metadata)"


@stated(DDPO, "trl rewards", Gives([0.25, 0.75]), modality="diffusion")
def ddpo(folder: Path) -> object:
    def mean(images: Any, prompts: Any, metadata: Any) -> tuple[Any, Any]:
        assert images.shape == (2, 3, 8, 8) and len(prompts) == len(metadata) == 2 and metadata[1]["scene"] == 3
        return images.mean((1, 2, 3)), {}

    return scored(mean, picture(0.25), picture(0.75), extra={"scene": 3})


@stated(f"{DDPO} as NumPy", "trl rewards", Gives([0.25, 0.75]), modality="diffusion")
def ddpo_numpy(folder: Path) -> object:
    def mean(images: Any, prompts: Any, metadata: Any) -> tuple[Any, Any]:
        pixels = (images * 256).round().clamp(0, 255).to(torch.uint8).cpu().numpy().transpose(0, 2, 3, 1)
        return pixels.mean((1, 2, 3)) / 256, {}

    return scored(mean, picture(0.25), picture(0.75))


CONVERSATIONS = {
    "accuracy_reward": ((r"so \boxed{7}", r"so \boxed{8}"), [1.0, 0.0]),
    "reasoning_accuracy_reward": ((r"<think>8</think> \boxed{7}", r"<think>\boxed{7}"), [1.0, 0.0]),
    "think_format_reward": (("<think>a</think>b", "b"), [1.0, 0.0]),
    "get_cosine_scaled_reward": ((r"\boxed{7}", r"\boxed{8}"), [0.75, -0.75]),
    "get_repetition_penalty_reward": (("a", "b"), [0.0, 0.0]),
    "get_soft_overlong_punishment": (("a", "b"), [-0.5, -0.5]),
}
ARGUMENTS = {
    "get_cosine_scaled_reward": {"max_len": 4},
    "get_repetition_penalty_reward": {"ngram_size": 3},
    "get_soft_overlong_punishment": {"max_completion_len": 3, "soft_punish_cache": 2},
}


def _of_trl(name: str) -> None:
    texts, wanted = CONVERSATIONS[name]

    @stated(f"newcomer 3: {name}", "trl rewards", Gives(wanted), modality="vlm", needs=("trl", "math_verify"))
    def run(folder: Path) -> object:
        import trl.rewards

        function = getattr(trl.rewards, name)
        made = function(**ARGUMENTS[name]) if name in ARGUMENTS else function
        return totals([spoken([5, 1], text, prompt=CHAT, extra={"solution": "7"}) for text in texts], made)


for _name in CONVERSATIONS:
    _of_trl(_name)
