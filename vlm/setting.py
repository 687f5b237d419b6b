"""What every recipe for models that speak shares: a policy, questions, demonstrations, gates, evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ..trainers.learner import AnchorSet
    from ..trainers.loop import Experiment, Stage
    from ..trainers.run_folder import RunFolder
    from ..types import Rollout
    from .policy import TokenPolicy
    from .questions import Questions
    from .rereading import OwnEyes


@dataclass(frozen=True)
class SpeakingConfig:
    """Fields that every recipe for models that speak has."""

    model: str = ""
    """A folder or hub name; empty takes the small default, made in three CPU minutes at first use; smollm2 takes
    SmolLM2-135M-Instruct from its package."""
    data: str = ""
    """A file of JSON lines (prompt, image, answer, category, demonstration); empty takes the small world of scenes, or
    sums for a model that does not see."""
    eval_data: str = ""
    """Held-out questions in the same form; empty holds out every fifth of ``data``."""
    rewards: tuple[str, ...] = ("exact",)
    """NAME, NAME:WEIGHT, package.module:function or file.py:function."""
    seed: int = 0
    """Keys the default model, its demonstrations, sampling and everything else."""
    split: int = 0
    """Which compositions of the small world are held out; settings are chosen on another than results are told on."""
    demonstrations: int = 150
    """Traced answers that the default model has imitated."""
    iterations: int = 320
    """Rounds of answering and learning."""
    prompts_per_step: int = 24
    """Questions per round."""
    group: int = 16
    """Answers per question and round."""
    lr: float = 8e-4
    """Learning rate of AdamW."""
    decay: bool = True
    """Let the learning rate fall linearly to a tenth."""
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    """Clipping of the global gradient norm."""
    temperature: float = 1.0
    """Of sampling; log-probabilities are taken at the same temperature."""
    horizon: int = 0
    """Most tokens of an answer; 0 takes 14 for the default model and 256 for others."""
    mask_truncated: bool = False
    """Do not learn from answers that hit the limit; they are counted either way."""
    entropy: float = 0.01
    """Weight of the entropy bonus."""
    kl: float = 0.0
    """Weight of the KL to the start."""
    replay: float = 0.5
    """Weight of going on imitating the demonstrations, where there are some."""
    replay_size: int = 24
    """Demonstrations per gradient step."""
    lora_rank: int = 16
    """Rank of the adapters of a model that is loaded; 0 trains all weights. The default model is trained whole."""
    lora_alpha: float = 0.0
    """The adapters' factor is alpha / rank; 0 takes the rank."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Of a loaded model's weights; auto is the checkpoint's own."""
    freeze_vision: bool = True
    """Leave a loaded model's vision tower as it is, and keep what it saw over epochs."""
    at_once: int = 512
    """Answers held in memory at once."""
    gate: bool = True
    """Keep, repair or roll back by held-out questions."""
    gate_labels: int = 210
    """Answers that the gate may read; 0 judges by whether two views of a question get the same answer."""
    gate_every: int = 25
    """Rounds between two looks."""
    gate_z: float = 3.0
    """Standard errors of a fall that sound the alarm."""
    eval_episodes: int = 60
    """Held-out questions per type or category."""
    eval_offset: int = 0
    """How many of them are skipped."""
    samples: int = 0
    """Answers per question for mean@k and pass@k at an evaluation; 0 asks greedily alone."""
    sampled_questions: int = 40
    """Held-out questions per type that are sampled."""
    evaluate_every: int = 0
    """Rounds between further evaluations."""
    shown: int = 12
    """Answers before and after that the run keeps to be read."""


VIEWS = 48
"""Of every demonstration of the small world: as many as turning, mirroring and permuting channels give."""

TINY: Mapping[str, Any] = {
    "iterations": 2,
    "prompts_per_step": 7,
    "group": 4,
    "eval_episodes": 2,
    "gate_every": 1,
    "gate_labels": 14,
    "demonstrations": 14,
    "replay_size": 4,
    "shown": 2,
}
"""What makes a recipe end in seconds, once the default model is there."""


@dataclass(eq=False)
class Setting:
    """A started run."""

    config: SpeakingConfig
    policy: TokenPolicy
    start: TokenPolicy
    questions: Questions
    encoded: list[Rollout]

    def reward(self, **own: Callable[[], Any]) -> Any:
        """The reward that the config names; refused where no question has the column that it needs."""
        from ..rewards.answers import require_columns
        from ..rewards.names import compose

        made = compose(self.config.rewards, own=own)
        require_columns(made, self.sample_of_tasks())
        return made

    def sample_of_tasks(self) -> list[Any]:
        """The first training question of every category."""
        return [source(0) if callable(source) else source[0] for source in self.questions.train.values()]

    @property
    def eyes(self) -> OwnEyes:
        """The small model's own reading of pictures, as it was at the start."""
        from ..errors import UsageError
        from .rereading import OwnEyes

        if not self.questions.small_world:
            raise UsageError(
                "a second look at cells is known for the default model in its small world alone; without labels any "
                "model can learn by vlm/self_critique, vlm/evol_rl or vlm/ttrl"
            )
        return OwnEyes(self.start.module)  # type: ignore[arg-type]

    def replay(self) -> AnchorSet | None:
        """Demonstrations that every gradient step imitates as well."""
        from ..trainers.learner import AnchorSet
        from ..trainers.objectives import WeightedImitation

        if not self.encoded:
            return None
        config = self.config
        return AnchorSet(self.encoded, WeightedImitation(), weight=config.replay, size=config.replay_size)

    def learner(self, objective: Any, *, dropout: bool = False, **options: Any) -> Any:
        """A learner with the config's optimisation; the start is the reference "start" that it may ask for.

        Args:
            dropout: learn in training mode, for imitation; what is on-policy must see what was sampled.
        """
        from ..trainers.learner import Optimisation, PolicyLearner
        from .wrapped import WithDropout

        config = self.config
        how = Optimisation(
            config.lr,
            max_grad_norm=config.max_grad_norm,
            weight_decay=config.weight_decay,
            decay=options.pop("decay", config.iterations) if config.decay else 0,
            seed=config.seed,
            repair_lr=0.5,
        )
        options = {"references": {"start": self.start}, "anchors": self.replay(), **options}
        learner = PolicyLearner(self.policy, objective, how, **options)
        return WithDropout(self.policy, learner) if dropout else learner

    def regularised(self, objective: Any) -> Any:
        """The objective with the config's entropy bonus and KL to the start."""
        from ..trainers.objectives import Entropy, KLPenalty

        if self.config.entropy:
            objective = objective - self.config.entropy * Entropy()
        return objective + self.config.kl * KLPenalty("start") if self.config.kl else objective

    def stage(self, learner: Any, reward: Any, *, actor: Any = None, proxy: Any = None, **changes: Any) -> Stage:
        """Questions -> answers -> reward -> the given learner -> gate.

        Args:
            proxy: a reward of single answers that stands for the training reward in the gate's evidence.
            changes: fields of Stage.
        """
        from ..trainers.curricula import Uniform
        from ..trainers.loop import Stage
        from .watch import Watch

        config = self.config
        sampling: dict[str, Any] = {"temperature": config.temperature}
        if actor is None:
            sampling["keep_prefix"] = True
        fields: dict[str, Any] = {
            "steps": config.iterations,
            "actor": self.policy if actor is None else actor,
            "curriculum": Uniform(self.questions.train, seed=config.seed, quarantine=config.gate_every),
            "reward": reward,
            "tasks_per_step": config.prompts_per_step,
            "group_size": config.group,
            "learners": {"policy": learner, "watch": Watch()},
            "sampling": sampling,
            "gate": self.gate(proxy) if config.gate else None,
            "gate_every": config.gate_every,
        }
        return Stage(**fields | changes)

    def gate(self, proxy: Any = None) -> Any:
        """A canary of labelled questions, or agreement between views; never the training reward itself."""
        from ..errors import UsageError
        from ..rewards.consensus import ViewConsistency
        from ..trainers.gates import Canary

        if not self.config.gate_labels and not any(task.parent for task in self.questions.probes):
            raise UsageError(
                "a gate without labels compares two views of a question, and chats without pictures have none: "
                "give --gate-labels N, or --no-gate"
            )
        judge = self.questions.verify if self.config.gate_labels else ViewConsistency()
        return Canary(self.questions.probes, judge, self.config.gate_z, reward=proxy)

    def evaluate(self, actor: Any) -> Mapping[str, Any]:
        """Accuracy on held-out questions, with figures; the only place that reads their answers."""
        from .evaluation import evaluate

        return evaluate(self, actor)

    def experiment(self, stages: Sequence[Stage]) -> Experiment:
        """Stages with this setting's evaluation, samples and model card around them."""
        from ..trainers.loop import Experiment
        from .evaluation import write_answers

        def finish(folder: RunFolder) -> None:
            write_answers(self, folder)
            self.policy.save_pretrained(folder.path / "policy")
            folder.write_card()

        labels = sum(task.reference is not None for task in self.questions.probes) if self.config.gate else 0
        return Experiment(
            stages,
            self.evaluate,
            evaluate_every=self.config.evaluate_every,
            seed=self.config.seed,
            label_account=f"gate_labels: {labels or 'none'}",
            cpu_clock=time.process_time,
            finish=finish,
        )


def start(config: SpeakingConfig, *, labels: bool = True) -> Setting:
    """Load model and questions; without ``labels`` no training question carries its answer."""
    import torch

    from ..errors import UsageError

    if config.group < 1 or config.prompts_per_step < 1:
        raise UsageError("a round needs a question and an answer: --prompts-per-step and --group of 1 or more")
    if is_small(config):
        torch.set_num_threads(1)  # more gain nothing at this size
    own = read_own(config, labels) if config.data else None  # bad lines are told before a large model is loaded
    policy = load_policy(config)
    questions = own or ask(config, policy, labels)
    return Setting(config, policy, policy.fork("start"), questions, _encoded(config, policy, questions))


def is_small(config: SpeakingConfig) -> bool:
    """Whether the model is the small default, or a folder that a run with it wrote."""
    import json
    from pathlib import Path

    description = Path(config.model) / "config.json"
    if not config.model or not description.is_file():
        return not config.model
    return bool(json.loads(description.read_text()).get("model_type") == "glimpse")


def load_policy(config: SpeakingConfig) -> TokenPolicy:
    """The policy that the config names, on the device of this process."""
    from pathlib import Path

    import torch

    from ..trainers.distributed import barrier, device, is_main
    from .policy import TokenPolicy

    options: dict[str, Any] = {"at_once": config.at_once, "mask_truncated": config.mask_truncated}
    options["piece"] = config.at_once
    if is_small(config):
        from .glimpse_backbone import glimpse_policy
        from .glimpse_training import default_model, quiet

        quiet()
        if is_main() and not config.model:
            default_model(config.seed, config.split, config.demonstrations)
        barrier()  # the others read what the main process made
        folder = config.model or default_model(config.seed, config.split, config.demonstrations)
        policy = glimpse_policy(folder, horizon=config.horizon or 14, **options)
        policy.module.to(device())
        return policy
    source = config.model
    if source == "smollm2":
        from .smollm import smollm2

        source = str(smollm2())
    dtypes: dict[str, Any] = {"auto": "auto", "fp32": torch.float32, "bf16": torch.bfloat16}
    options |= {"horizon": config.horizon or 256, "seed": config.seed, "freeze_vision": config.freeze_vision}
    if device().type == "cuda":
        options["autocast"] = torch.bfloat16
    if config.lora_rank and not (Path(source) / "adapter_config.json").is_file():  # saved adapters are trained further
        options |= {"lora_rank": config.lora_rank, "lora_alpha": config.lora_alpha or None}
    if device().type == "cpu" and config.dtype == "bf16":
        options["attn_implementation"] = "eager"  # the fused kernel is slower for one query at a time
    return TokenPolicy.from_pretrained(source, dtype=dtypes[config.dtype], device=device(), **options)


def read_own(config: SpeakingConfig, labels: bool) -> Questions:
    """The questions of the config's own files."""
    from .questions import from_file

    labelled = config.gate_labels if config.gate else 0
    asked: dict[str, Any] = {"held_out": config.eval_episodes, "offset": config.eval_offset}
    return from_file(config.data, evaluation=config.eval_data, gate_labels=labelled, labels=labels, **asked)


def ask(config: SpeakingConfig, policy: TokenPolicy, labels: bool) -> Questions:
    """The small world's questions, or sums for a model that does not see."""
    from . import questions

    labelled = config.gate_labels if config.gate else 0
    sees = getattr(policy.backbone, "image_token", None) is not None
    ask_about = questions.small_world if sees or is_small(config) else questions.sums
    asked: Questions = ask_about(
        config.seed,
        config.split,
        labels=labels,
        gate_labels=labelled,
        held_out=config.eval_episodes,
        offset=config.eval_offset,
    )
    return questions.explained(asked) if sees else asked


def _encoded(config: SpeakingConfig, policy: TokenPolicy, questions: Questions) -> list[Rollout]:
    """Demonstrations as rollouts; those of the small world in VIEWS views each."""
    import random

    from ..types import Task

    if questions.small_world and config.demonstrations:
        from .glimpse_training import demonstrated, in_view

        draw = random.Random(f"replay {config.seed}")
        items, _ = demonstrated(config.demonstrations, config.seed, config.split)
        shown = [item if view == 0 else in_view(item, draw) for view in range(VIEWS) for item in items]
        tasks = [Task(f"demonstration/{i}", item.prompt, (item.picture,)) for i, item in enumerate(shown)]
        return policy.encode(tasks, [item.answer for item in shown])
    pairs = questions.demonstrations
    return policy.encode([task for task, _ in pairs], [said for _, said in pairs])
