"""What of a run is a label, beside what its gate reads: for the account that its report shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..families import GROUND_TRUTH, families_of
from ..trainers.actors import Demonstrations
from .wrapped import Labels

if TYPE_CHECKING:
    from ..trainers.loop import Stage
    from .setting import Setting


def labels_read(setting: Setting, stages: Sequence[Stage]) -> list[str]:
    """Answers that are read, demonstrations and who imitates them when, and rules that stand for labels."""
    found, actors = [], [stage.actor for stage in stages]
    if GROUND_TRUTH in families_of(*(stage.reward for stage in stages)):
        found.append("answers of training questions, by the reward")
    if any(isinstance(actor, Labels) for actor in actors):
        found.append("answers of training questions, imitated")
    if uses := _uses(setting, stages):
        asked = setting.questions
        shown = setting.config.demonstrations if asked.small_world else len(asked.demonstrations)
        found.append(f"{shown} demonstrations with answers{' and traces' * asked.small_world}: {', '.join(uses)}")
    if setting.rules:
        found.append("the small world's own rules, on cells as the start reads them")
    return found


def _uses(setting: Setting, stages: Sequence[Stage]) -> list[str]:
    """Who imitates the demonstrations, and when."""
    if not setting.encoded:
        return []
    uses = ["imitated by the start"] if setting.questions.small_world and not setting.config.model else []
    anchors = [found for stage in stages for learner in stage.learners.values() if (found := _anchors(learner))]
    if any(isinstance(actor, Demonstrations) for stage in stages for actor in _inside(stage.actor)):
        uses.append("imitated in training")
    if any(anchor.weight > 0 for anchor in anchors):
        uses.append("replayed in every step")
    elif anchors and any(stage.gate is not None for stage in stages):
        uses.append("replayed after a repair by the gate")
    return uses


def _anchors(learner: Any) -> Any:
    """The anchors of a learner, or of the one that it stands around."""
    return next((found for part in _inside(learner, "learner") if (found := getattr(part, "anchors", None))), None)


def _inside(part: Any, name: str = "policy") -> Iterator[Any]:
    while part is not None:
        yield part
        part = vars(part).get(name) if hasattr(part, "__dict__") else None
