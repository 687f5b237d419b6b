"""The majority decides which answers are good, novelty how good, so that learning without labels keeps its variety.

Paper: EVOL-RL (Zhou et al., arXiv:2509.15194).
Faithful: r = 0.5 + 0.5 novelty for the majority's answer, -1 + 0.5 novelty for the others, -1 without an answer; GRPO
with clip 0.2 / 0.28, entropy 0.003, KL 0.001 and several steps a round. Rewards equal the released code's
(YujunZhou/EVOL-RL, 19896e0) on 300 random groups with the same embeddings, to 6e-6; numbers are those of evol_rl.sh
with its options for clip and entropy. ``--votes`` samples more answers than are learned from (64 and 32 there), and all
of them are compared. ``--no-novelty`` pays 1 and -1, its own ablation; the release then pays what TTRL pays, and GRPO's
advantages are the same for both.
Left out: the language model that embeds the reasoning (Qwen3-Embedding-4B): by default answers are embedded by the
frequencies of their letters, by ``--embedding minilm`` as sentences.
Differs: a group with one valid answer pays it 1, where the release pays all -1. Four steps a round; the release takes
one per question, of eight. The standard deviation of a group is floored (``--std-floor``, 0.1). 16 answers vote and are
learned from by default. A gate.
Labels: none in training, demonstrations neither (``--sft-coef`` 0); the start has imitated labelled demonstrations; the
gate's labels.
Expected: not measured yet (the figures in docs/results.md are of runs that replayed demonstrations).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..setting import start
from . import ttrl

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Config(ttrl.Config):
    """Numbers with a source are the paper's."""

    objective: str = ""
    novelty: bool = True
    """Pay novelty within the band that the majority's verdict sets."""
    embedding: Literal["letters", "minilm"] = "letters"
    """What answers are compared by: groups of letters, or sentence embeddings of all-MiniLM-L6-v2."""
    entropy_coef: float = 0.003  # evol_rl.sh (checked against the code)
    kl_coef: float = 0.001  # evol_rl.sh (checked against the code)


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...errors import UsageError
    from ...rewards.text.consensus import MajorityNovelty, MajorityVote, letter_groups
    from ...rewards.text.embeddings import MiniLM
    from ...trainers.published import clipped, normalised

    if config.embedding != "letters" and not config.novelty:
        raise UsageError("--embedding has no effect with --no-novelty: leave one of them out")
    embedding = MiniLM() if config.embedding == "minilm" else letter_groups
    reward: Any = MajorityNovelty(embedding) if config.novelty else MajorityVote(other=-1.0)
    setting = start(config, folder, labels=False)
    objective = clipped(setting.config, 0.2, 0.28)
    learner = setting.learner(objective, advantage=normalised(setting.config))
    return setting.experiment([ttrl.voted(setting, config.votes, learner, reward, type(reward).__name__)])
