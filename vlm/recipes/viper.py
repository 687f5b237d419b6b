"""Pictures are described, redrawn from the description, and compared: what the description missed is learned.

Paper: ViPER (arXiv:2510.24285).
Faithful: stage one, captions: an image model redraws the picture from the caption, and the caption is paid by how much
of the picture comes back. Stage two, operations: one object of the picture is changed and redrawn, and the model has to
tell the change, which is known because it was made. GRPO with clip 0.2 / 0.28, no KL; reward 0.05 form + 0.95 content.
Checked against notes on the paper, not against it. ``--stages operations`` or ``captions`` is one stage alone, its
ablations.
Left out: the other kinds of operations, and the paper's data.
Differs: pictures are compared by cells as the start reads them (F1 of objects), where the paper's model writes
differences and a text embedding compares. The redrawer is any callable from captions to pictures (``Redrawn.draw``):
here the world's exact renderer. A round is two gradient steps, so that the clip acts; an entropy bonus is added
(``--entropy-coef``).
Labels: the small world's renderer and its changes, an oracle; no question and no answer is read, the demonstrations
that the start has imitated are not replayed (``--sft-coef``), and the gate compares two views of a question.
Expected: not measured yet: older figures are withdrawn, as views of the demonstrations asked held-out compositions.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ...trainers.ranges import Share
from ..setting import LanguageConfig, start

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder
    from ...types import Task


@dataclass(frozen=True)
class Config(LanguageConfig):
    """Numbers with a source are the paper's."""

    SMALL: ClassVar[Mapping[str, Any]] = {"max_new_tokens": 26}
    TINY: ClassVar[Mapping[str, Any]] = {"gate_labels": 0}
    FIXED: ClassVar[tuple[str, ...]] = ("rewards",)

    stages: Literal["both", "captions", "operations"] = "both"
    """Both stages, or one alone."""
    form: Share = 0.05  # R = 0.05 form + 0.95 content (notes on the paper)
    """Share of the reward that the form alone earns."""
    minibatches: int | None = 2
    sft_coef: float = 0.0
    gate_labels: int = 0


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...envs.toys import scenes
    from ...rewards.reward import Reward
    from ...trainers.published import clipped, normalised

    setting = start(config, folder, labels=False)
    eyes = setting.eyes

    def draw(captions: Sequence[str]) -> list[Any]:
        return list(scenes.render([scenes.redraw(caption) or (0,) * scenes.CELLS for caption in captions]))

    described = {kind: Described(source) for kind, source in setting.questions.train.items()}
    shown = (eyes, config.seed, config.noise)
    changed = {kind: Changed(source, *shown) for kind, source in setting.questions.train.items()}
    plan: dict[str, Any] = {
        "captions": (described, Redrawn(draw, eyes, config.form)),
        "operations": (changed, Operation(config.form)),
    }
    names = ["captions", "operations"] if config.stages == "both" else [config.stages]
    stages = []
    for name in names:
        sources, reward = plan[name]
        steps = config.max_steps // len(names)
        objective = clipped(config, 0.2, 0.28)
        learner = setting.learner(objective, advantage=normalised(setting.config), steps=steps)
        curriculum = setting.curriculum(sources)
        stages.append(setting.stage(learner, Reward(reward, name), curriculum=curriculum, steps=steps))
    return setting.experiment(stages)


@dataclass(frozen=True)
class Described:
    """The pictures of questions, to be described."""

    source: Any

    def __call__(self, index: int) -> Task:
        task: Task = self.source(index)
        return replace(task, id=f"{task.id}/describe", prompt="describe")


@dataclass(frozen=True)
class Changed:
    """The pictures of questions, one object changed; the question is what happened, and the answer is known."""

    source: Any
    eyes: Any
    seed: int
    noise: float = 12.0

    def __call__(self, index: int) -> Task:
        from ...envs.toys import scenes

        task: Task = self.source(index)
        seen = self.eyes(task.images)[0]
        after, told = scenes.change(seen, random.Random(f"{self.seed} {task.id}"))
        picture = scenes.render([after], f"{task.id}/changed", self.noise)[0]
        prompt = f"change from {scenes.caption(seen)}"
        return replace(task, id=f"{task.id}/changed", prompt=prompt, images=(picture,), extra={"operation": told})


@dataclass(frozen=True)
class Redrawn:
    """How much of a picture comes back from its caption: F1 of the objects that picture and redrawing share."""

    draw: Callable[[Sequence[str]], Sequence[Any]]
    eyes: Any
    form: float
    families: ClassVar[frozenset[str]] = frozenset({"redrawing"})

    def __call__(self, completions: Sequence[Any], images: Any, **columns: Any) -> list[float]:
        from ...envs.toys import scenes

        texts = [str(said) for said in completions]
        scores = []
        again = self.eyes(self.draw(texts))
        for text, was, now in zip(texts, self.eyes([image[0] for image in images]), again, strict=True):
            objects = [{(cell, kind) for cell, kind in enumerate(scene) if kind} for scene in (was, now)]
            shared, total = len(objects[0] & objects[1]), len(objects[0]) + len(objects[1])
            well = float(scenes.redraw(text) is not None)
            scores.append(self.form * well + (1 - self.form) * well * 2 * shared / max(1, total))
        return scores


@dataclass(frozen=True)
class Operation:
    """1 for telling the change as it was made; the form alone pays ``form``."""

    form: float
    families: ClassVar[frozenset[str]] = frozenset({"changes that were made"})

    def __call__(self, completions: Sequence[Any], operation: Sequence[str], **columns: Any) -> list[float]:
        scores = []
        for said, told in zip(completions, operation, strict=True):
            mark, _, what = str(said).partition("= ")
            well = not mark and len(what.split()) in (2, 3)
            scores.append(self.form * well + (1 - self.form) * (what == told))
        return scores
