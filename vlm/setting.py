"""What every recipe for models that speak shares: a policy, questions, demonstrations, gates, evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..errors import UsageError
from ..trainers import setting as shared
from ..trainers.config import BY_MODEL, RunConfig, fixed, grouped
from ..trainers.ranges import Amount, Count, Share, Whole
from ..working import LONG, working

if TYPE_CHECKING:
    from pathlib import Path

    from ..splitting import Contents
    from ..trainers.learner import AnchorSet
    from ..trainers.runs.run_folder import RunFolder
    from ..types import Advantage, Learner, Objective, RewardFunction, Rollout, Task
    from .plan import TokenPlan
    from .policy import TokenPolicy
    from .questions import Questions
    from .small.rereading import OwnEyes


def adapters_lr(config: LanguageConfig) -> float:
    """1e-4 with adapters and 1e-5 without"""
    return 1e-4 if config.lora_rank else 1e-5


@dataclass(frozen=True)
class LanguageConfig(RunConfig):
    """Fields that every recipe for models that speak has."""

    group: ClassVar[str] = "vlm"
    SMALL: ClassVar[Mapping[str, Any]] = {
        "lr": 8e-4,
        "group_size": 16,
        "tasks_per_step": 24,
        "sample_tokens": 2**16,
        "micro_batch_tokens": 2**16,
        "max_new_tokens": 14,
        "weight_decay": 0.05,
        "std_floor": 0.1,
    }
    LOADED: ClassVar[Mapping[str, Any]] = {
        "lr": adapters_lr,
        "max_new_tokens": 256,
        "sample_tokens": 8192,
        "micro_batch_tokens": 4096,
        "std_floor": 0.1,
    }
    OWN: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "rewards": ("self_yes_no", "self_vote", "log_ratio", "weakest_step"),
        "judge": ("self_yes_no", "self_vote", "log_ratio", "weakest_step"),
        "tools": ("python", "crop"),
    }
    RUNTIME: ClassVar[tuple[str, ...]] = ("sample_tokens", "micro_batch_tokens")
    start_fields: ClassVar[tuple[str, ...]] = (
        *("model", "seed", "lora_rank", "lora_alpha", "renderer", "chat", "freeze_vision", "dtype"),
        *("data", "eval_data", "split", "demonstrations", "noise"),
    )
    """What the weights at the start, and what is asked of them, depend on: runs that agree in them are comparable."""
    TINY: ClassVar[Mapping[str, Any]] = {
        "tasks_per_step": 7,
        "group_size": 4,
        "eval_episodes": 2,
        "gate_labels": 14,
        "sft_batch_size": 4,
        "shown": 2,
    }

    model: str = ""
    """A folder or hub name; empty takes the small default, made in three CPU minutes at first use; smollm2 takes
    SmolLM2-135M-Instruct from its package."""
    lora_rank: Whole = grouped("model", 16)
    """Rank of the adapters of a model that is loaded; 0 trains all weights. The default model is trained whole."""
    lora_alpha: Amount = grouped("model", 0.0)
    """The adapters' factor is alpha / rank; 0 takes the rank."""
    renderer: str = grouped("model", "")
    """The loaded model's chat renderer: a registered name, package.module:NAME or FILE.py:NAME; empty is that of its
    model type."""
    chat: bool = grouped("model", True)
    """Put questions through the loaded model's chat template; without one, as of a base model, texts are read as they
    are, control tokens and placeholders included."""
    cache_gb: Amount = grouped("model", 1.0)
    """Gigabytes for prepared questions, pixels included, and as many for what a frozen vision tower saw."""
    freeze_vision: bool = grouped("model", True)
    """Leave a loaded model's vision tower as it is, and keep what it saw over epochs."""
    gradient_checkpointing: Share | None = grouped("model", None)
    """Share of a loaded model's layers that are recomputed in backward, 0 to 1: less memory for more arithmetic. None:
    1 above a billion parameters, else 0."""
    attn_implementation: str = grouped("model", "")
    """Of a loaded model, as transformers calls it: sdpa, eager, flash_attention_2; empty is its own."""
    device_map: str = grouped("model", "")
    """Spreads a loaded model over this process's devices, as accelerate calls it: auto, balanced; empty takes one."""
    memory_gb: Amount = grouped("model", 0.0)
    """Gigabytes of the device that a run with a loaded model plans with; 0: nine tenths of what is free on a GPU, and
    on a CPU no plan."""
    data: str = grouped("data", "")
    """FILE.jsonl, .json, .csv, .tsv or .parquet, or OWNER/NAME@CONFIG:SPLIT of the hub, with prompt, image, answer,
    category, demonstration; empty takes the small world of scenes, or sums for a model that does not see."""
    eval_data: str = grouped("data", "")
    """Held-out questions in the same form; empty holds out a fifth of every category of ``data``, as far as it is
    asked."""
    split: Whole = grouped("data", 0)
    """Which questions, or compositions of the small world, are held out; settings are chosen on another than results
    are told on."""
    demonstrations: Whole = grouped("data", 150)
    """Traced answers that the default model has imitated."""
    noise: Amount = grouped("data", 12.0)
    """Of the small world's pixels, a standard deviation in 8-bit levels. At 12 the default model reads every cell
    rightly, at 70 94 of 100 cells, and 87 of 100 that hold an object."""
    max_new_tokens: Count = grouped("sampling", BY_MODEL)
    """Most tokens of an answer."""
    sample_tokens: Count = grouped("sampling", BY_MODEL)
    """Tokens held in memory at once in sampling: prompts, once where their answers share them, and answers at their
    longest. With a plan None is as many as there is room for."""
    decoder: Literal["auto", "static", "merged", "eager"] = grouped("sampling", "auto")
    """How a loaded model says token after token: static, in fixed shapes, which a GPU replays as one CUDA graph per
    step; merged, the same on a copy of the adapted weights with the adapters in it, fewer operators for more memory;
    or eager, operator by operator. auto is static on a GPU."""
    micro_batch_tokens: Count = grouped("optimisation", BY_MODEL)
    """Tokens held in memory at once in learning, counted alike; gradients are those of the whole batch. With a plan
    None is as many as there is room for."""
    max_steps: int = 320
    lr_schedule: Literal["constant", "linear", "cosine"] = "linear"
    tools: tuple[str, ...] = grouped("sampling", ())
    """What the policy may call in its turns, see vlm/tools.py: python, crop, package.module:NAME or FILE.py:NAME."""
    turns: Count = grouped("sampling", 4)
    """Most turns of an answer with tools."""
    server: str = grouped("sampling", "")
    """Address of a server with the same --model that answers in training (vLLM, SGLang; see vlm/server.py)."""
    rewards: tuple[str, ...] = ("exact",)
    live: bool = grouped("objective", False)
    """Rewards that ask the policy itself (self_yes_no, self_vote, weakest_step) ask it as it is, not as it began."""
    mask_truncated: bool = grouped("objective", False)
    """Do not learn from answers that hit the limit; they are counted either way."""
    overlong_buffer: Whole = grouped("objective", 0)
    """DAPO's overlong reward shaping: of the last so many tokens before max_new_tokens each costs a share of
    overlong_penalty; 0 is without."""
    overlong_penalty: Amount = grouped("objective", 1.0)
    """What an answer of max_new_tokens loses by overlong_buffer."""
    sft_coef: float = 0.5
    sft_batch_size: int = 24
    gate: str = "canary"
    gate_every: int = 25
    gate_labels: Whole = grouped("gate", 210)
    """Answers (or tests) that the gate may read; 0 judges by whether two views of a question get the same answer."""
    eval_episodes: int = 60
    """Held-out questions per type or category."""
    samples: Whole = grouped("evaluation", 0)
    """Answers per question for mean@k and pass@k at an evaluation; 0 asks greedily alone."""
    sampled_questions: Count = grouped("evaluation", 40)
    """Held-out questions per type that are sampled."""
    shown: Whole = grouped("logging", 12)
    """Answers before and after that the run keeps to be read."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.overlong_buffer and "rewards" in fixed(type(self)):
            raise UsageError("--overlong-buffer adds to --rewards, which this recipe's method fixes: leave it out")

    def plan(self) -> str:
        if is_small(self):
            return "plan: the small default model takes some MiB, whatever is asked"
        return str(plan_of(self, always=True))


SMALL_READS = (
    "without --model the small default model is trained, which reads questions in its own words about one picture of "
    "32 x 32 pixels"
)


@dataclass(eq=False)
class Setting(shared.Setting):
    """A started run.

    Attributes:
        labelled: whether training questions carry their answers.
        imitated: when training imitates demonstrations, in words.
        reads: what else training reads that is a label, or stands for one, in words.
    """

    config: LanguageConfig
    policy: TokenPolicy
    start: TokenPolicy
    questions: Questions
    encoded: list[Rollout]
    trained_by: RewardFunction | None = None
    planned: int | None = None
    labelled: bool = True
    imitated: list[str] = field(default_factory=list)
    reads: list[str] = field(default_factory=list)
    repair_lr: ClassVar[float] = 0.5

    @property
    def longest(self) -> int:
        return self.config.max_new_tokens

    def sources(self) -> Mapping[str, Any]:
        return self.questions.train

    def probes(self) -> Sequence[Task]:
        return self.questions.probes

    def splits(self) -> Sequence[Mapping[str, Contents]]:
        return self.questions.splits_with(self.encoded)

    def reward(self, **own: Callable[[], Any]) -> Any:
        """The reward that the config names; refused where no question has the column that it needs."""
        from ..calling import require_columns
        from ..rewards.names import compose
        from ..rewards.text.overlong import Overlong
        from .asking import own_rewards

        config, own = self.config, own_rewards(self.policy, self.start, live=self.config.live) | own
        names = config.rewards
        if config.overlong_buffer:
            longest, buffer, penalty = self.longest, config.overlong_buffer, config.overlong_penalty
            names, own = (*names, "overlong"), own | {"overlong": lambda: Overlong(longest, buffer, penalty)}
        made = compose(names, own=own)
        require_columns(made, self.sample_of_tasks(), tokens=True)
        self.trained_by = made
        return made

    def sample_of_tasks(self) -> list[Any]:
        """The training questions of a file, or the first of every category where they are endless."""
        several = self.questions.train.values()
        return [task for source in several for task in ([source(0)] if callable(source) else source)]

    @property
    def verify(self) -> RewardFunction:
        """What is right: the questions' verification; where there is none, the reward that trains is all there is."""
        verify: RewardFunction | None = self.questions.verify or self.trained_by
        if verify is None:
            raise UsageError('no question has an "answer", and this recipe has no reward to evaluate by instead')
        return verify

    @property
    def eyes(self) -> OwnEyes:
        """The small model's own reading of pictures, as it was at the start."""
        from .small.rereading import OwnEyes

        if not self.questions.small_world:
            raise UsageError(
                "a second look at cells is known for the default model in its small world alone; without labels any "
                "model can learn by vlm/self_critique, vlm/evol_rl or vlm/ttrl"
            )
        self.reads.append("the small world's own rules, on cells as the start reads them")
        return OwnEyes(self.start.module)  # type: ignore[arg-type]

    def described(self) -> dict[str, str]:
        config, asked = self.config, self.questions
        whole = is_small(config) or not config.lora_rank
        trained = "all its weights" if whole else f"adapters of rank {config.lora_rank}"
        categories = len({task.category for task in asked.held_out})
        source = config.data or ("the small world of scenes" if asked.small_world else "sums")
        shown = f"{len(asked.demonstrations) or (config.demonstrations if asked.small_world else 0)}"
        return {
            "policy": f"{config.model or 'the small default model'}, {trained}",
            "questions": f"{source}; {len(asked.held_out)} held out, of {categories} categories",
            "demonstrations": f"{shown} with their answers" if shown != "0" else "none",
            "success": "a greedy answer to a held-out question that is right",
        }

    def anchors(self) -> AnchorSet | None:
        from ..trainers.learner import AnchorSet
        from ..trainers.objectives import WeightedImitation

        config = self.config
        if not self.encoded or not (self.labelled or config.sft_coef):  # nor does a repair turn to labels
            return None
        if config.sft_coef or config.gate != "none":
            self.imitated.append("replayed in every step" if config.sft_coef else "replayed after a repair by the gate")
        return AnchorSet(self.encoded, WeightedImitation(), weight=config.sft_coef, size=config.sft_batch_size)

    def learner(
        self,
        objective: Objective | None = None,
        advantage: Advantage | None = None,
        *,
        dropout: bool = False,
        **options: Any,
    ) -> Learner:
        """As in every modality.

        Args:
            dropout: learn in training mode, for imitation; what is on-policy must see what was sampled.
        """
        from ..trainers.weights import check_trains
        from .wrapped import WithDropout

        check_trains(self.policy.module)
        learner = super().learner(objective, advantage, **options)
        return WithDropout(learner) if dropout else learner

    def learners(self, learner: Learner) -> dict[str, Learner]:
        from ..trainers.peak import PeakWatch
        from .watch import Watch

        found: dict[str, Learner] = {"policy": learner, "watch": Watch()}
        if self.policy.device.type == "cuda":
            found["memory"] = PeakWatch(self.policy.device, self.planned)
        return found

    def stage(self, learner: Learner, reward: RewardFunction, *, actor: Any = None, **changes: Any) -> Any:
        """Questions -> answers -> reward -> the given learner -> gate; ``changes`` as in every modality."""
        if actor is not None and (self.config.tools or self.config.server):
            raise UsageError("this recipe has an actor of its own: --tools and --server have no effect, leave them out")
        actor = self.actor() if actor is None else actor
        sampling: dict[str, Any] = {"temperature": self.config.temperature}
        if actor is self.policy:
            sampling["keep_prefix"] = True
        return super().stage(learner, reward, **{"actor": actor, "sampling": sampling} | changes)

    def actor(self) -> Any:
        """Who answers: the policy, with the config's tools, or in training the config's server."""
        from .conversation import Conversation
        from .server import ServerActor
        from .tools import ToolBox, tools_of

        config = self.config
        if config.tools and config.server:
            raise UsageError("a server does not call tools: give --tools or --server")
        if config.tools:
            reader = self.policy.renderer
            reader.reply(".")  # without a chat template there are no turns: told before a round is played
            tools = ToolBox(tools_of(config.tools), shorten=reader.shorten, opened=reader.opened)
            return Conversation(self.policy, tools, turns=config.turns)
        return ServerActor(self.policy, config.server, config.model) if config.server else self.policy

    def held_out_judge(self) -> RewardFunction:
        """Labels, or agreement between views; never the training reward itself."""
        from ..rewards.names import compose
        from ..rewards.text.consensus import ViewConsistency
        from .asking import own_rewards

        if self.config.judge:
            return compose((self.config.judge,), own=own_rewards(self.policy, self.start))
        if any(task.parent for task in self.questions.probes):
            return ViewConsistency()
        if self.config.gate_labels and self.questions.verify is not None:
            return self.questions.verify  # type: ignore[no-any-return]
        raise UsageError(
            "a gate without labels compares two views of a question, and chats without pictures have none: "
            "give --gate-labels N, or --gate none"
        )

    def labels_read(self, stages: Sequence[Any]) -> Sequence[str]:
        from .labels import labels_read

        return labels_read(self, stages)

    def evaluate(self, actor: Any) -> Mapping[str, Any]:
        """Accuracy on held-out questions, with figures; the only place that reads their answers."""
        from .evaluation import evaluate

        return evaluate(self, actor)

    def save(self, path: Path, merged: bool = False) -> None:
        from ..trainers.lora import merge_lora

        if merged:
            merge_lora(self.policy.module)
        self.policy.save_pretrained(path)

    def finish(self, folder: RunFolder, actor: Any = None) -> None:
        """As in every modality; the answers kept are those of the policy, or of a system."""
        from .evaluation import write_answers

        write_answers(self, folder, self.policy if actor is None else actor)
        folder.write_card()


def start(config: LanguageConfig, folder: RunFolder | None = None, *, labels: bool = True) -> Setting:
    """Load model and questions.

    Args:
        folder: the run's, whose config.json gets the defaults by model.
        labels: whether training questions carry their answers.
    """
    import torch

    from ..trainers.data import remember
    from ..trainers.distributed import is_main
    from ..trainers.precision import settle
    from .demonstrations import encoded
    from .rows import decode

    settle(config, is_small(config))
    plan = None if is_small(config) else plan_of(config)
    if plan is not None and is_main():
        print(plan)
    computed = {} if plan is None else plan.settings()
    config = shared.settled(config, is_small(config), folder, **computed)
    if is_small(config):
        torch.set_num_threads(1)  # more gain nothing at this size
    began = None if folder is None else folder.config
    if config.data and config.noise != LanguageConfig.noise:
        raise UsageError("--noise is of the small world's pictures, and --data asks about others: leave one out")
    own = read_own(config, labels, began) if config.data else None  # bad rows are told before a large model is loaded
    if own is not None:
        if is_main():
            print(own.note)
            if is_small(config):
                print(SMALL_READS)
        if remember(folder, **own.tables):
            decode(own.everything())
    policy = load_policy(config)
    if own is not None:
        policy.check_tasks(list(own.everything()))
    questions = own or ask(config, policy, labels)
    planned = None if plan is None else plan.total
    made = config, policy, policy.fork("start"), questions, encoded(config, policy, questions)
    return Setting(*made, planned=planned, labelled=labels)


def plan_of(config: LanguageConfig, always: bool = False) -> TokenPlan | None:
    """What a run with a loaded model will take; None where nobody says how much there is, unless it is asked for."""
    from ..trainers.distributed import device
    from ..trainers.peak import free_memory
    from ..trainers.precision import dtype_of

    budget = int(config.memory_gb * 1e9) or free_memory(device())
    if budget is None and not always:
        return None
    from .plan import Planner

    compute = dtype_of(config.dtype, False, device())

    held = {"sample_tokens", "micro_batch_tokens"} if budget is not None else set()
    filled = {name: value for name, value in config.taken(False).items() if name not in held}
    with working(f"planning for {config.model}", after=LONG):
        return Planner(replace(config, **filled), source_of(config), compute).plan(budget)


def is_small(config: LanguageConfig) -> bool:
    """Whether the model is the small default, or a folder that a run with it wrote."""
    from pathlib import Path

    from ..json_files import read_object

    description = Path(config.model) / "config.json"
    if not config.model or not description.is_file():
        return not config.model
    return bool(read_object(description).get("model_type") == "glimpse")


def load_policy(config: LanguageConfig) -> TokenPolicy:
    """The policy that the config names, on the device of this process."""
    from pathlib import Path

    import torch

    from ..trainers.distributed import barrier, device, is_main
    from ..trainers.precision import autocast_of, dtype_of
    from .policy import TokenPolicy

    options: dict[str, Any] = {"mask_truncated": config.mask_truncated, "horizon": config.max_new_tokens}
    options |= {"sample_tokens": config.sample_tokens, "micro_batch_tokens": config.micro_batch_tokens}
    compute = dtype_of(config.dtype, is_small(config), device())
    options |= {"autocast": autocast_of(compute), "decoder": config.decoder}
    if is_small(config):
        from .small.glimpse_backbone import glimpse_policy
        from .small.glimpse_training import default_model, quiet

        quiet()
        if is_main() and not config.model:
            default_model(config.seed, config.split, config.demonstrations, config.noise)
        barrier()  # the others read what the main process made
        folder = config.model or default_model(config.seed, config.split, config.demonstrations, config.noise)
        policy = glimpse_policy(folder, **options)
        policy.module.to(device())
        return policy
    source = source_of(config)
    options |= {"seed": config.seed, "freeze_vision": config.freeze_vision, "renderer": config.renderer or None}
    options["feature_bytes"] = int(config.cache_gb * 1e9)
    saved = (Path(source) / "adapter_config.json").is_file()  # adapters, which are trained further
    if config.lora_rank and not saved:
        options |= {"lora_rank": config.lora_rank, "lora_alpha": config.lora_alpha or None}
    options["dtype"] = compute if config.lora_rank or saved else torch.float32
    options["gradient_checkpointing"] = config.gradient_checkpointing
    options["attn_implementation"] = config.attn_implementation or None
    if device().type == "cpu" and compute == torch.bfloat16 and not config.attn_implementation:
        options["attn_implementation"] = "eager"  # the fused kernel is slower for one query at a time
    options |= {"device_map": config.device_map} if config.device_map else {"device": device()}
    if not config.chat:
        options["renderer"] = partial(_renderer(config.renderer), chat=False)
    with working(f"loading {config.model}", after=LONG):
        policy = TokenPolicy.from_pretrained(source, **options)
    policy.hold_in_float32()
    policy.renderer.store.limit = int(config.cache_gb * 1e9)
    return policy


def source_of(config: LanguageConfig) -> str:
    """The folder or hub name of a loaded model."""
    if config.model == "smollm2":
        from .smollm import smollm2

        return str(smollm2())
    return config.model


def _renderer(name: str) -> Any:
    """The renderer that the config names, which reads texts as they are."""
    from ..plugins import named
    from .processing import ProcessorRenderer

    return named("renderer", name) if name else ProcessorRenderer


def read_own(config: LanguageConfig, labels: bool, began: Mapping[str, Any] | None = None) -> Questions:
    """The questions of the config's own files.

    Args:
        began: the config that a run began with, where another number is evaluated now.
    """
    from ..calling import check_references
    from ..rewards.names import verifiers
    from .asking import OWN
    from .questions import from_file

    fields = asdict(config) | dict(began or {})
    unnamed = "rewards" in fixed(type(config))  # the recipe's own, which no question of a file is graded by
    questions = from_file(
        config.data,
        evaluation=config.eval_data,
        gate=config.gate != "none",
        gate_labels=config.gate_labels,
        labels=labels,
        held_out=config.eval_episodes,
        offset=config.eval_offset,
        reserved=fields["eval_episodes"] + fields["eval_offset"],
        verifiers=[] if unnamed else verifiers(config.rewards, own=OWN),
        ungraded=not unnamed,
        split=config.split,
    )
    for verifier in [] if questions.verify is None else questions.verify.verifiers:
        check_references(verifier, questions.everything())
    if is_small(config):
        _check_words(questions)
    return questions


def _check_words(questions: Questions) -> None:
    """Refuse what the small default model cannot read."""
    from ..envs.toys.scenes import CELLS
    from .small.glimpse import GlimpseConfig
    from .small.glimpse_backbone import GlimpseRenderer

    renderer, longest = GlimpseRenderer(), GlimpseConfig().max_prompt
    for task in questions.everything():
        try:
            if (words := len(renderer.prompt(task).ids) - CELLS) > longest:
                raise UsageError(f"task {task.id} has {words} words, more than {longest}")
        except UsageError as error:
            raise UsageError(f"{error}; {SMALL_READS}: give --model for questions of another kind") from error


def ask(config: LanguageConfig, policy: TokenPolicy, labels: bool) -> Questions:
    """The small world's questions, or sums for a model that does not see."""
    from . import questions

    labelled = config.gate_labels if config.gate != "none" else 0
    sees = policy.renderer.sees
    ask_about: Any = partial(questions.small_world, noise=config.noise) if sees else questions.sums
    if not sees and config.noise != LanguageConfig.noise:
        raise UsageError("--noise is of the small world's pictures, and this model does not see: leave it out")
    asked: Questions = ask_about(
        config.seed,
        config.split,
        labels=labels,
        gate_labels=labelled,
        held_out=config.eval_episodes,
        offset=config.eval_offset,
    )
    return asked if is_small(config) or not policy.renderer.sees else questions.explained(asked)
