"""Rewards as people write them, what policies do to them, and what they are called with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from autotelic.trainers.scoring import columns, score, total_of
from autotelic.types import Rollout, Task

from .cases import Gives, GoesOn, Refuses, Required, autotelic, case

NOTHING = torch.zeros(1)
CHAT = [{"role": "user", "content": "say it"}]


def attempt(output: Any, name: str = "task", **fields: Any) -> Rollout:
    task = Task(**{"id": name, "prompt": "say it"} | fields)
    return Rollout(task, output, {}, NOTHING, NOTHING.bool(), NOTHING.long())


def attempts(*outputs: Any, **fields: Any) -> list[Rollout]:
    return [attempt(output, f"task-{i}", **fields) for i, output in enumerate(outputs)]


def spoken(ids: Sequence[int], text: str, **fields: Any) -> Rollout:
    """A completion of a token policy."""
    tokens = torch.tensor(list(ids))
    task = Task(**{"id": text[:20], "prompt": "say it"} | fields)
    return Rollout(task, text, {"tokens": tokens}, tokens * 0.0, tokens >= 0, tokens * 0)


def totals(rollouts: Sequence[Rollout], reward: Any) -> list[float | None]:
    score(rollouts, reward)
    return [total_of(rollout) for rollout in rollouts]


def scored(reward: Any, *outputs: Any, **fields: Any) -> list[float | None]:
    return totals(attempts(*outputs, **fields), reward)


def lengths(outputs: Sequence[Any], **_: Any) -> list[float]:
    return [float(len(output)) for output in outputs]


def stated(
    name: str, kind: str, required: Required, by: Any = "user", modality: str = "core", **options: Any
) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    return case(name, kind=kind, modality=modality, entry="reward", required=required, by=by, **options)


def picture(value: float, size: int = 8) -> torch.Tensor:
    return torch.full((3, size, size), value)


# --- columns: images are shown, outputs are made ----------------------------------------------------------------------


@stated("vlm A19: images in a batch without any", "two doors", Gives([None, None]), modality="vlm")
def no_images(folder: Path) -> object:
    return list(columns(attempts("a", "b"))["images"])


@stated("vlm A19: images in a mixed batch", "two doors", Gives([1, None]), modality="vlm")
def some_images(folder: Path) -> object:
    rollouts = [attempt("a", images=(np.zeros((4, 4, 3), np.uint8),)), attempt("b")]
    return [None if row is None else len(row) for row in columns(rollouts)["images"]]


@stated(
    "images of a policy that draws are what it was shown",
    "two doors",
    Gives([None, 0.5]),
    modality="diffusion",
)
def drawn(folder: Path) -> object:
    table = columns([attempt(picture(0.5))])
    return [table["images"][0], float(table["outputs"][0].mean())]


@stated("a reward of images alone gets those that were drawn", "two doors", Gives([0.25, 0.75]), modality="diffusion")
def drawn_as_images(folder: Path) -> object:
    def mean(images: Any, prompts: Any, **_: Any) -> list[float]:
        return [float(image.mean()) for image in images]

    return scored(mean, picture(0.25), picture(0.75))


@stated(
    "a reward of images alone where pictures are edited",
    "two doors",
    Refuses("mean.*outputs"),
    modality="diffusion",
)
def edited(folder: Path) -> object:
    def mean(images: Any, prompts: Any, **_: Any) -> list[float]:
        return [float(np.asarray(image[0]).mean()) for image in images]

    return scored(mean, picture(0.25), images=(Image.new("RGB", (8, 8)),))


@stated("an edited picture and what it was", "two doors", Gives([[8, 8, 0.25]]), modality="diffusion")
def edited_well(folder: Path) -> object:
    seen = []

    def both(images: Any, outputs: Any, **_: Any) -> list[float]:
        seen.extend([*image[0].size, float(output.mean())] for image, output in zip(images, outputs, strict=True))
        return [0.0] * len(outputs)

    score(attempts(picture(0.25), images=(np.zeros((8, 8, 3), np.uint8),)), both)
    return seen


RESERVED = ("tasks", "prompts", "completions", "outputs", "images", "groups", "rollouts", "references", "log_metric")


def _reserved(name: str) -> None:
    @stated(f"vlm A19: a column of one's own named {name}", "two doors", Refuses(f'column.*"{name}"'))
    def collides(folder: Path) -> object:
        return scored(lengths, "a", extra={name: "mine"})


for _name in RESERVED:
    _reserved(_name)


@stated("vlm A19: a file with a column named completions", "two doors", Refuses('column "completions"'), modality="vlm")
def reserved_in_a_file(folder: Path) -> object:
    from autotelic.vlm.rows import read_rows

    (folder / "asked.jsonl").write_text('{"prompt": "What is 7?", "answer": "7", "completions": "7"}\n')
    return read_rows(str(folder / "asked.jsonl"))


B4 = "diffusion B4: a reward with gradient is handed a tensor"


@stated(f"{B4} in rounds, evaluations and gates", "two doors", Gives([0.5, -0.5]), modality="diffusion")
def differentiable(folder: Path) -> object:
    def redness(images: Any, **columns: Any) -> Any:
        return images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2))

    redness.differentiable = True  # type: ignore[attr-defined]
    red, blue = picture(0.0), picture(0.0)
    red[0], blue[2] = 0.5, 0.5
    return scored(redness, red, blue)


@stated(f"{B4} as a term of a sum", "two doors", Gives([1.5]), modality="diffusion")
def differentiable_term(folder: Path) -> object:
    from autotelic.rewards.reward import Reward

    def tensors(outputs: Any, **_: Any) -> Any:
        return outputs.mean((1, 2, 3))

    def lists(outputs: Any, **_: Any) -> list[float]:
        return [1.0 if output.shape == (3, 8, 8) else 0.0 for output in outputs if isinstance(outputs, list)]

    return scored(Reward(tensors, differentiable=True) + Reward(lists), picture(0.5))


# --- errors: of the policy, of the user, of machines ------------------------------------------------------------------


def inverse(completions: Any, **_: Any) -> list[float]:
    return [1 / len(text) for text in completions]


@stated("vlm A8: a reward breaks on one answer", "policy errors", Gives([0.5, 0.25, 0.25]), "policy")
def breaks_on_one(folder: Path) -> object:
    return scored(inverse, "ab", "", "abcd")


@stated(
    "vlm A8: a reward with a declared minimum breaks on one answer",
    "policy errors",
    Gives([0.5, -1.0]),
    "policy",
)
def declared_minimum(folder: Path) -> object:
    def own(completions: Any, **_: Any) -> list[float]:
        return inverse(completions)

    own.minimum = -1.0  # type: ignore[attr-defined]
    return scored(own, "ab", "")


@stated("vlm A8: what broke is told and counted", "policy errors", Gives([1 / 3, True]), "policy")
def told(folder: Path) -> object:
    rollouts = attempts("ab", "", "abcd")
    metrics = score(rollouts, inverse)
    return [metrics["faults/policy"], "ZeroDivisionError" in str(rollouts[1].info["fault"])]


@stated("vlm A8: one term of a sum breaks on one answer", "policy errors", Gives([2.0, 0.0]), "policy")
def term_breaks(folder: Path) -> object:
    from autotelic.rewards.reward import Reward

    rollouts = attempts("a", "")
    both = Reward(inverse) + Reward(lengths)
    both.minimum = 0.0
    return totals(rollouts, both)


@stated("a policy that collapses breaks a reward that worked", "policy errors", GoesOn(), "policy")
def collapses(folder: Path) -> object:
    scored(inverse, "ab", "abc")
    return scored(inverse, "", "")


@stated("vlm A8: a lone surrogate", "policy errors", Gives([2.0, 2.0, False]), "policy")
def surrogate(folder: Path) -> object:
    given: list[str] = []

    def encodes(completions: Any, **_: Any) -> list[float]:
        given.extend(completions)
        return [float(len(text.encode())) for text in completions]

    return [*scored(encodes, "ab", "\ud83d"), "\ud83d" in given]


UNREADABLE: dict[str, Callable[[], Any]] = {
    "NaN": lambda: picture(math.nan),
    "infinite": lambda: picture(math.inf),
    "one NaN pixel": lambda: torch.cat([picture(0.5)[:2], picture(math.nan)[:1]]),
}


def _unreadable(name: str) -> None:
    @stated(
        f"diffusion B1: a picture that is {name}",
        "numbers",
        Gives([-0.5, -0.75, -0.75]),
        "policy",
        "diffusion",
    )
    def scored_low(folder: Path) -> object:
        def dark(outputs: Any, **_: Any) -> list[float]:
            assert all(bool(torch.isfinite(output).all()) for output in outputs)
            return [-float(output.mean()) for output in outputs]

        return scored(dark, picture(0.5), UNREADABLE[name](), picture(0.75))


for _name in UNREADABLE:
    _unreadable(_name)


@stated("diffusion B1: JPEG does not love NaN", "numbers", Gives(True), "policy", "diffusion")
def jpeg_of_nan(folder: Path) -> object:
    from autotelic.rewards.image.pictures import JPEGSize

    noise = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    first, second = scored(JPEGSize(), noise, picture(math.nan, 64))
    return second is not None and first is not None and second <= first


@stated(
    "diffusion B1: nothing but NaN is no round with a reward",
    "numbers",
    Gives([None, None]),
    "policy",
    "diffusion",
)
def only_nan(folder: Path) -> object:
    from autotelic.rewards.image.pictures import JPEGSize

    return scored(JPEGSize(), picture(math.nan), picture(math.nan))


@stated("an episode with actions that are NaN", "numbers", Gives([1.0, 1.0]), "policy", "vla")
def nan_episode(folder: Path) -> object:
    from autotelic.envs.pool import Episode

    def calm(episodes: Any, **_: Any) -> list[float]:
        return [float(np.abs(e.actions).mean()) for e in episodes]

    actions = [np.ones((1, 5, 2), np.float32), np.full((1, 5, 2), np.nan, np.float32)]
    seen = np.zeros((2, 3), np.float32)
    return scored(calm, *(Episode("x", "do", 0, seen, each, 5, False, None, None) for each in actions))


def _non_finite(name: str, reader: str) -> None:
    @case(
        f"diffusion B1: {reader} of a picture that is {name}",
        kind="numbers",
        modality="diffusion",
        entry="picture",
        required=Refuses("sample 1.*not finite"),
        by="policy",
    )
    def read(folder: Path) -> object:
        from autotelic.rewards.image import images

        return getattr(images, reader)([picture(0.5), UNREADABLE[name]()])


for _name in UNREADABLE:
    _non_finite(_name, "as_float")
    _non_finite(_name, "as_uint8")


@stated(
    "a reward that breaks on everything is the user's",
    "policy errors",
    Refuses("wrong.*KeyError.*rewards.py, line"),
)
def users_mistake(folder: Path) -> object:
    def wrong(completions: Any, **_: Any) -> list[float]:
        return [{"a": 1.0}["b"] for _ in completions]

    return scored(wrong, "a", "b")


@stated("a reward that refuses a reference", "policy errors", Refuses("Numeric.*seven"))
def refused_reference(folder: Path) -> object:
    from autotelic.rewards.text.verifiers import Numeric

    return totals([attempt("7", "a", reference="7"), attempt("7", "b", reference="seven")], Numeric())


def failing(times: int, error: Exception) -> Callable[..., list[float]]:
    calls = iter(range(times))

    def remote(completions: Any, **_: Any) -> list[float]:
        if next(calls, None) is not None:
            raise error
        return [1.0] * len(completions)

    return remote


MACHINES: dict[str, tuple[Callable[[], Exception], int, list[float | None]]] = {
    "once by a lost connection": (lambda: ConnectionResetError("reset by peer"), 1, [1.0, 1.0]),
    "once by time": (lambda: TimeoutError("no answer"), 1, [1.0, 1.0]),
    "for good by a lost connection": (lambda: ConnectionRefusedError("refused"), 10**6, [None, None]),
    "for good by time": (lambda: TimeoutError("no answer"), 10**6, [None, None]),
}


def _machine(name: str) -> None:
    make, times, wanted = MACHINES[name]

    @stated(f"a remote reward fails {name}", "policy errors", Gives(wanted), "machine")
    def fails(folder: Path) -> object:
        return scored(failing(times, make()), "a", "b")


for _name in MACHINES:
    _machine(_name)


@stated("what machines caused is counted", "policy errors", Gives(1.0), "machine")
def counted(folder: Path) -> object:
    return score(attempts("a", "b"), failing(10**6, TimeoutError("no answer")))["faults/infrastructure"]


@stated("an error that does not come again", "policy errors", Gives([1.0, 1.0]), "machine")
def flickers(folder: Path) -> object:
    return scored(failing(1, RuntimeError("CUDA hiccup")), "a", "b")


# --- brothers ---------------------------------------------------------------------------------------------------------


@stated("a reward that changes pictures in place", "two doors", Refuses("changes.*copy"), modality="diffusion")
def in_place(folder: Path) -> object:
    def loud(outputs: Any, **_: Any) -> list[float]:
        return [float(output.mul_(255).mean()) for output in outputs]

    return scored(loud, picture(0.5), picture(0.25))


@stated("a reward that changes its columns leaves the next one's alone", "two doors", Gives([3.0, 2.0]))
def changed_columns(folder: Path) -> object:
    from autotelic.rewards.reward import Reward

    def empties(outputs: Any, **_: Any) -> list[float]:
        return [0.0 for _ in range(len(outputs)) if outputs.pop() is not None]

    return scored(Reward(empties) + Reward(lengths), "abc", "ab")


@stated("a reward that exits on one answer", "policy errors", Gives([1.0, 1.0]), "policy")
def exits(folder: Path) -> object:
    import argparse

    def parsed(outputs: Any, **_: Any) -> list[float]:
        parser = argparse.ArgumentParser()
        parser.add_argument("--good", action="store_true")
        return [float(parser.parse_args(text.split()).good) for text in outputs]

    return scored(parsed, "--good", "--bad")


@stated("pictures of which one is out of range", "policy errors", Gives([-0.5, -0.5]), "policy", "diffusion")
def out_of_range(folder: Path) -> object:
    from autotelic.rewards.image.images import as_float

    def dark(outputs: Any, **_: Any) -> Any:
        return -as_float(outputs).mean((1, 2, 3))

    return scored(dark, picture(0.5), picture(1.5))


@stated(
    "pictures that are all out of range", "policy errors", Refuses(r"-1\.\.-1, not in 0\.\.1"), modality="diffusion"
)
def all_out_of_range(folder: Path) -> object:
    from autotelic.rewards.image.pictures import JPEGSize

    return scored(JPEGSize(), picture(-1.0), picture(-1.0))


@stated(
    "a judge of pictures of which one is out of range",
    "policy errors",
    Gives([0.5, 0.0]),
    "policy",
    "diffusion",
)
def judged_out_of_range(folder: Path) -> object:
    from autotelic.rewards.models.judge import YesNoJudge

    return scored(YesNoJudge(asker=lambda questions: [0.5] * len(questions)), picture(0.5), picture(1.5))


@stated("an empty mapping", "trl rewards", Refuses("planted.*empty"))
def empty_mapping(folder: Path) -> object:
    def planted(**_: Any) -> Any:
        return {}

    return scored(planted, "a", "b")


NUMBERS: dict[str, Callable[[Any], Any]] = {
    "a minimum of NaN": lambda Reward: Reward(lengths, minimum=math.nan),
    "a minimum of minus infinity": lambda Reward: Reward(lengths, minimum=-math.inf),
    "a weight of NaN": lambda Reward: math.nan * Reward(lengths),
    "an infinite weight": lambda Reward: math.inf * Reward(lengths),
}


def _number(name: str) -> None:
    @stated(f"{name} of a reward", "numbers", Refuses("finite"))
    def made(folder: Path) -> object:
        from autotelic.rewards.reward import Reward

        return scored(NUMBERS[name](Reward), "a")


for _name in NUMBERS:
    _number(_name)


@stated("--rewards exact:1e999", "numbers", Refuses("finite"), modality="vlm")
def infinite_weight(folder: Path) -> object:
    from autotelic.rewards.names import compose

    return compose(["exact:1e999"]).name


@stated("a function's own minimum that is NaN", "numbers", Refuses("minimum.*finite"))
def nan_minimum(folder: Path) -> object:
    def own(outputs: Any, **_: Any) -> list[float]:
        return [1.0] * len(outputs)

    own.minimum = math.nan  # type: ignore[attr-defined]
    return scored(own, "a", "\ud800")


# --- limits and sources -----------------------------------------------------------------------------------------------


@case(
    "diffusion B5: a published scorer takes pictures in pieces",
    kind="bytes",
    modality="diffusion",
    entry="reward",
    required=Gives([True, 40]),
    by="user",
)
def in_pieces(folder: Path) -> object:
    from autotelic.rewards.image.hub import LaionAesthetic

    sizes: list[int] = []

    class Counting(LaionAesthetic):
        def score(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
            sizes.append(len(images))
            return images.mean((1, 2, 3))

    found = Counting()(torch.zeros(40, 3, 512, 512), ["a"] * 40)
    return [max(sizes) < 40, len(found)]


def _same_source(spec: str, judge: str) -> None:
    @case(
        f"diffusion B14: --rewards {spec} --judge {judge}",
        kind="graders",
        modality="diffusion",
        entry="judge",
        required=Refuses("famil"),
        by="user",
        slow=True,
    )
    def same(folder: Path) -> object:
        return autotelic("run", "diffusion/ddpo", "--debug", "--rewards", spec, "--judge", judge, folder=folder)


_same_source("jpeg", "jpeg")
_same_source("jpeg", "incompressible")


@case(
    "diffusion B14: the same judge is refused before a pipeline is loaded",
    kind="graders",
    modality="diffusion",
    entry="judge",
    required=Refuses("famil"),
    by="user",
)
def same_early(folder: Path) -> object:
    from autotelic.diffusion.recipes.ddpo import Config
    from autotelic.diffusion.setting import rewards

    (folder / "prompts.txt").write_text("a cat\na dog\n")
    return rewards(Config(data=str(folder / "prompts.txt"), rewards=("jpeg",), judge="jpeg", gate="none"), False)


@case(
    "newcomer 4: a reward of one's own for a robot",
    kind="first hour",
    modality="vla",
    entry="reward",
    required=Gives(True),
    by="user",
    slow=True,
)
def for_robots(folder: Path) -> object:
    return "--rewards" in autotelic("run", "vla/evolve_vla", "--help", folder=folder)
