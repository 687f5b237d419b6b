"""What of a run is a label, beside what its gate reads: for the account that its report shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..families import GROUND_TRUTH, families_of

if TYPE_CHECKING:
    from ..trainers.loop import Stage
    from .setting import Setting


def labels_read(setting: Setting, stages: Sequence[Stage]) -> list[str]:
    """Answers that are read, demonstrations and who imitates them when, and rules that stand for labels."""
    found, small = list[str](), setting.questions.small_world
    if GROUND_TRUTH in families_of(*(stage.reward for stage in stages)):
        found.append("answers of training questions, by the reward")
    began = ["imitated by the start"] if setting.encoded and small and not setting.config.model else []
    if uses := [*began, *dict.fromkeys(setting.imitated)]:
        shown = setting.config.demonstrations if small else len(setting.questions.demonstrations)
        found.append(f"{shown} demonstrations with answers{' and traces' * small}: {', '.join(uses)}")
    return [*found, *dict.fromkeys(setting.reads)]
