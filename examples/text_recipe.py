"""A text model's answers come to share more words with the right ones than their siblings do: a recipe of one's own.

autotelic run examples/text_recipe.py --model FOLDER --data questions.jsonl
"""

from dataclasses import dataclass

from autotelic import GroupRelative, LanguageConfig, Reinforce, register
from autotelic.vlm.setting import start


@register("reward", "shared_words")
def shared_words(completions, answer, **columns):
    """F1 of an answer's words and those of the "answer" in the file."""
    pairs = [(set(said.split()), set(right.split())) for said, right in zip(completions, answer, strict=True)]
    return [2 * len(said & right) / max(1, len(said) + len(right)) for said, right in pairs]


@dataclass(frozen=True)
class Config(LanguageConfig):
    """What is not told is as for every model that speaks."""

    rewards: tuple[str, ...] = ("shared_words",)
    gate: str = "none"


def build(config, folder):
    setting = start(config, folder)
    advantage = GroupRelative(scale="none", baseline="leave_one_out")
    return setting.experiment([setting.stage(setting.learner(Reinforce(), advantage), setting.reward())])
