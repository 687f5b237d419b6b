"""Answers are compared with the others to the same question, and what was better than them becomes likelier: GRPO.

Paper: GRPO (DeepSeekMath, Shao et al., arXiv:2402.03300, section 4.1). By ``--objective`` also Dr.GRPO (Liu et al.,
arXiv:2503.20783), DAPO (Yu et al., arXiv:2503.14476), GSPO (Zheng et al., arXiv:2507.18071), RLOO, REINFORCE++, NFT
(Chen et al., arXiv:2505.18116), CoPG (Flet-Berliac et al., arXiv:2406.19185), IPO (Azar et al., arXiv:2310.12036), or
one of your own.
Faithful: losses, advantages and their gradients, run once beside TRL 1.16.0 and verl b178a3cd on the same tensors
(equal to 1e-9; NFT beside NVlabs/NFT b358fae; CoPG and IPO are derived). A round is ``--minibatches`` gradient steps,
so that ratios leave 1 and clips act; groups without spread count in the divisor. DAPO's filter is
``--dynamic-sampling``, its shaping of overlong answers ``--overlong-buffer`` (both by reading verl); its decoupled clip
and its mean over tokens come with the name.
Left out: GRPO's KL to the start is off (``--kl-coef``; the paper's is 0.04), as in the later papers. The reward model.
Differs: two steps per round by default, of half the groups each; the paper's own GRPO takes one, GSPO four, DAPO
sixteen. The standard deviation of a group is floored (``--std-floor``, 0.1). ``--objective dapo`` turns neither of
DAPO's two options on. Demonstrations are imitated in every gradient step (``--sft-coef``, 0.5); 0 leaves them out.
Labels: the answers of training questions, by the reward; the demonstrations, with answers and traces, in every step;
the gate's labels.
Expected: not measured yet (the figures in docs/results.md are of one step per round, and withdrawn).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..setting import LanguageConfig, start

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Config(LanguageConfig):
    """Numbers without a source were chosen on the tuning split."""

    SMALL: ClassVar[Mapping[str, Any]] = {"minibatches": 2}
    LOADED: ClassVar[Mapping[str, Any]] = {"minibatches": 2}

    objective: str = "grpo"


def build(config: Config, folder: RunFolder) -> Experiment:
    setting = start(config, folder)
    reward = setting.reward()
    return setting.experiment([setting.stage(setting.learner(), reward, proxy=reward)])
