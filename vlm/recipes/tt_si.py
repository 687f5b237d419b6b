"""Unsure of an input, a model writes itself similar ones, learns from them, answers, and forgets them again.

Paper: TT-SI (arXiv:2510.07841), self-improvement of agents at test time.
Faithful: per input the margin of the two best candidate answers, p = softmax of log P(a | x), against tau = 0.95; below
it K new pairs by the model itself, cross-entropy, the answer, and the weights as they were. Checked against notes on
the paper, not against it; tau and K = 1 are recalled. The run evaluates the policy before and the system after.
Left out: pairs of a stronger teacher (TT-D; benchmarks/tt_si.py has them), and tools as candidates.
Differs: candidates are an input's ``choices``, else the answers among some attempts, as the default model answers only
after naming cells. That model has no adapters: a copy of its weights is tuned; and it writes no pictures: its new input
is a view of the question, its answer what it says most often in other views, K = 4. Steps and learning rate are not the
paper's, which were not found; for the default model they and K were chosen on split 1.
Labels: training reads none: pairs are the model's own, and there is no gate; the evaluation's answers alone are read.
Expected: little. The default model went from 51.7 to 53.8 % of 420 held-out questions (+2, -1 to +5), half of them
adapted to; at random -0.7, with K = 1 -1.7 (one run, docs/results.md, before its lessons were kept off held-out
compositions; not measured yet since). Where it pays: the mixture of tasks of benchmarks/tt_si.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ...trainers.config import BY_MODEL, NO_GATE, POLICY_GRADIENT
from ...trainers.ranges import Amount, Count, Positive
from ..setting import LanguageConfig

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Config(LanguageConfig):
    """Numbers with a source are the paper's. Nothing is trained but for an answer, so that there are no rounds."""

    SMALL: ClassVar[Mapping[str, Any]] = {"examples": 4, "adapt_steps": 5, "adapt_lr": 1e-3}
    LOADED: ClassVar[Mapping[str, Any]] = {"examples": 1, "adapt_steps": 3, "adapt_lr": 1e-4}
    TINY: ClassVar[Mapping[str, Any]] = {"attempts": 3}
    FIXED: ClassVar[tuple[str, ...]] = (
        *(*POLICY_GRADIENT, *NO_GATE, "gate_labels", "rewards", "curriculum", "mask_truncated"),
        *("tasks_per_step", "group_size", "temperature", "max_steps", "lr", "lr_schedule", "weight_decay"),
        *("max_grad_norm", "epochs", "minibatches", "batch_size", "reference", "kl_coef", "entropy_coef"),
        *("sft_coef", "sft_batch_size", "eval_every", "save_every", "keep_last", "max_hours"),
    )

    threshold: Amount = 0.95  # tau (recalled)
    """Inputs with a smaller margin are adapted to; 0 adapts to none, 2 to all."""
    examples: Count = BY_MODEL  # K = 1 (recalled)
    """Similar inputs per input that is adapted to."""
    adapt_steps: Count = BY_MODEL
    """Gradient steps per input."""
    adapt_lr: Positive = BY_MODEL
    """Learning rate of these steps (AdamW)."""
    attempts: Count = 8
    """Answers that a margin is taken from where an input names no choices, and views that vote for a pair's answer."""
    gate_by: Literal["margin", "random"] = "margin"
    """random adapts to as many inputs, whichever they are: the control."""
    gate: str = "none"
    gate_labels: int = 0
    max_steps: int = 0
    tasks_per_step: int = 1
    group_size: int = 1


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...trainers.loop import Stage
    from ..adaptation import AdaptAndReset, Adaptation, Sureness, Views, Written
    from ..setting import start

    setting = start(config, folder, labels=False)
    settled: Any = setting.config
    system = AdaptAndReset(
        setting.policy,
        Sureness(config.attempts),
        Views(config.attempts) if setting.questions.small_world else Written(),
        Adaptation(settled.adapt_steps, settled.adapt_lr),
        threshold=config.threshold,
        examples=settled.examples,
        gate_by=config.gate_by,
    )
    curriculum, verify = setting.curriculum(), setting.questions.verify
    stages = [Stage(0, actor, curriculum, verify, {}, 1, 1) for actor in (setting.policy, system)]
    return setting.experiment(stages, finish=lambda folder: setting.finish(folder, system))
