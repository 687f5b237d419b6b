"""What every recipe for pictures shares: a pipeline with adapters, prompts, rewards, judges, evaluation, grids."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NoReturn, cast

from ..errors import UsageError
from ..families import labels_of, name_of
from ..trainers import setting as shared
from ..trainers.config import BY_MODEL, RunConfig, grouped
from ..trainers.ranges import Amount, Count, Range, Share, Whole
from ..working import LONG, working

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch

    from ..rewards.image.shapes import AttributeReward, NearestRender
    from ..rewards.reward import Reward
    from ..splitting import Contents
    from ..tables import Table
    from ..trainers.learner import AnchorSet
    from ..trainers.runs.run_folder import RunFolder
    from ..types import Learner, RewardFunction, Rollout, Task
    from .memory import Plan
    from .pipelines import PipelineAdapter
    from .policy import DenoisingPolicy
    from .prompts import Prompts

logger = logging.getLogger(__name__)


def adapters_lr(config: DiffusionConfig) -> float:
    """1e-4 with adapters and 1e-5 without"""
    return 1e-4 if config.lora_rank else 1e-5


def drawn(config: DiffusionConfig) -> int:
    """32 of one's own and 192 of the small world"""
    return 32 if config.data else 192


@dataclass(frozen=True)
class DiffusionConfig(RunConfig):
    """Fields that every recipe for pictures has."""

    group: ClassVar[str] = "diffusion"
    SMALL: ClassVar[Mapping[str, Any]] = {
        "lr": 1e-3,
        "group_size": 8,
        "tasks_per_step": 16,
        "sample_rows": 1024,
        "micro_batch_rows": 1024,
        "num_inference_steps": 6,
        "eval_prompts": 192,
    }
    LOADED: ClassVar[Mapping[str, Any]] = {
        "lr": adapters_lr,
        "sample_rows": 8,
        "micro_batch_rows": 8,
        "num_inference_steps": 50,
        "eval_prompts": drawn,
    }
    RUNTIME: ClassVar[tuple[str, ...]] = ("sample_rows", "micro_batch_rows")
    start_fields: ClassVar[tuple[str, ...]] = (
        *("model", "seed", "lora_rank", "lora_targets", "lora_alpha", "lora_path", "dtype", "data", "split"),
        *("num_inference_steps", "guidance_scale", "negative_prompt", "height", "width", "num_frames"),
    )
    """What the weights at the start, and what is drawn with them, depend on: runs that agree in them are comparable."""
    TINY: ClassVar[Mapping[str, Any]] = {
        "tasks_per_step": 3,
        "group_size": 3,
        "eval_episodes": 1,
        "gate_pictures": 1,
        "grid": 2,
    }
    FIXED: ClassVar[tuple[str, ...]] = ("temperature", "entropy_coef")
    through_decoder: ClassVar[bool] = False
    """Whether a gradient goes through the decoder: from pictures, by a differentiable reward."""
    OWN: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "rewards": ("attributes", "nearest_render"),
        "judge": ("attributes", "nearest_render"),
    }

    model: str = ""
    """A pipeline folder or hub name; empty takes the small default, made in a CPU minute at first use."""
    lora_rank: Whole = grouped("model", 8)
    """Rank of the adapters; 0 trains all weights of the denoiser."""
    lora_targets: tuple[str, ...] = grouped("model", ("all-linear",))
    """Ends of module names that get an adapter, such as to_q; all-linear takes every linear layer, attention those of
    the attention layers."""
    lora_alpha: Amount = grouped("model", 0.0)
    """The adapters' factor is alpha / rank; 0 takes the rank."""
    lora_path: str = grouped("model", "")
    """A LoRA to start from and go on training, whose rank, alpha and targets stay: a folder, a file or a hub name."""
    dtype: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"  # type: ignore[assignment]
    """What is computed in, and what frozen weights are; auto is bf16 for a loaded pipeline on a GPU that has it, else
    fp32. tf32 is fp32 with products in TF32, which fp32 never takes. What is trained is fp32."""
    gradient_checkpointing: Share | None = grouped("model", None)
    """Share of the denoiser's layers that are recomputed in backward, 0 to 1, and above 0 all of the decoder's where a
    gradient goes through it: less memory for more arithmetic. None: 1 above a billion parameters, else 0."""
    memory_gb: Amount = grouped("model", 0.0)
    """Gigabytes of the device that a run with a loaded pipeline plans with; 0: nine tenths of what is free on a GPU,
    and on a CPU no plan."""
    compile: bool = grouped("model", False)
    """Compile the denoiser's repeated blocks (torch.compile), at the cost of some time at the beginning."""
    vae_tiling: Literal["auto", "always", "never"] = grouped("model", "auto")
    """Decode pictures by tiles; auto does above 1,024 x 1,024 pixels."""
    offload_text_encoders: bool = grouped("model", False)
    """Keep the text encoders on the host but while they encode prompts that are not known yet."""
    data: str = grouped("data", "")
    """A text file with a prompt per line; FILE.jsonl, .json, .csv, .tsv or .parquet, or OWNER/NAME@CONFIG:SPLIT of the
    hub, with a column "prompt"; empty takes the small world's captions."""
    split: Whole = grouped("data", 0)
    """Which prompts are held out; settings are chosen on another than results are reported on."""
    max_steps: int = 62
    num_inference_steps: Count = grouped("sampling", BY_MODEL)
    """Denoising steps."""
    guidance_scale: Amount | None = grouped("sampling", None)
    """Scale of classifier-free guidance, in drawing and in learning; None is 1 (no guidance), and the usual scale of a
    guidance-distilled model, whose denoiser is told it."""
    negative_prompt: str = grouped("sampling", "")
    """What guidance leads away from."""
    height: Count | None = grouped("sampling", None)
    """Of the pictures in pixels; None is the pipeline's own."""
    width: Count | None = grouped("sampling", None)
    """Of the pictures in pixels; None is the pipeline's own."""
    num_frames: Count | None = grouped("sampling", None)
    """Of a video; None is the pipeline's own."""
    sample_rows: Count = grouped("sampling", BY_MODEL)
    """Pictures drawn at once: rows of the denoiser, twice as many with guidance."""
    micro_batch_rows: Count = grouped("optimisation", BY_MODEL)
    """Rows of the denoiser held in memory at once in learning; gradients are those of the whole batch."""
    rewards: tuple[str, ...] = ("attributes",)
    """NAME, NAME:WEIGHT, package.module:NAME or FILE.py:NAME; several are normalised per prompt, then added."""
    judge: str = ""
    """The held-out judge, a reward of another family; empty takes the nearest true render in the small world, else
    none: then nothing is gated."""
    gate: str = "non_inferiority"
    gate_prompts: Count = grouped("gate", 24)
    """Most prompts that the gate looks at."""
    gate_pictures: Count = grouped("gate", 4)
    """Pictures per probe prompt."""
    eval_prompts: Count = grouped("evaluation", BY_MODEL)
    """Most prompts of each kind, rewarded and unrewarded, that an evaluation draws."""
    eval_episodes: int = 4
    """Pictures per prompt at an evaluation, at fixed noise."""
    eval_guidance_scale: Amount | None = grouped("evaluation", None)
    """Guidance of evaluations, the gate and samples; None is that of training."""
    grid: Whole = grouped("logging", 6)
    """Prompts of each kind whose pictures are shown before and after; 0 shows none."""
    sampler: Literal["auto", "ddim", "ddpm", "euler_ancestral", "lcm", "tcd", "flow_ancestral", "flow_sde"] = "auto"
    """Kind of Gaussian step; auto takes the one that suits the pipeline's scheduler."""
    eta: Amount = 1.0
    """Share of the ancestral noise, or TCD's gamma."""
    noise_level: Amount = 0.7
    """a of the flow SDE (Flow-GRPO, arXiv 2505.05470; checked against the code)."""
    keep_graph: bool = True
    """Keep the graph of drawing for the first gradient step where it fits into micro_batch_rows: faster, the same
    gradient."""
    ema: Annotated[float, Range(0, 0.999999)] = 0.0
    """Decay of an average of the weights that is evaluated and saved instead of the last ones; 0 is none."""
    sft_pictures: Count = 256
    """Pictures that are imitated where sft_coef is above 0: true renders in the small world, else the start's own."""

    def plan(self) -> str:
        """What a run will take, in a line, before anything is loaded."""
        return f"plan: {plan_of(self)}"

    @property
    def steps_held(self) -> int:
        """Steps of a picture's chain whose graph is held at once."""
        return 1


@dataclass(eq=False)
class Setting(shared.Setting):
    """A started run."""

    config: DiffusionConfig
    policy: DenoisingPolicy
    start: DenoisingPolicy
    prompts: Prompts
    reward: RewardFunction
    judge: RewardFunction | None
    world: NearestRender | None
    average: Any = None
    preferences: int = 0
    kl_estimator: ClassVar[Literal["k3", "exact"]] = "exact"
    probing: ClassVar[Mapping[str, Any]] = {}

    @property
    def shown(self) -> Any:
        """The policy that is evaluated and saved: the average, where there is one."""
        return self.policy if self.average is None else self.average.average

    @property
    def longest(self) -> int:
        return self.policy.sampler.steps

    def sources(self) -> Mapping[str, Any]:
        from .prompts import source_of

        return {"rewarded": source_of(self.prompts.rewarded, self.config.seed)}

    def splits(self) -> Sequence[Mapping[str, Contents]]:
        from .prompts import content

        sides = self.prompts.sides.items()
        return [{side: {f'"{t.prompt}"': {content(str(t.prompt))} for t in tasks} for side, tasks in sides}]

    def probes(self) -> Sequence[Task]:
        from dataclasses import replace

        return [replace(t, id=f"{t.id}/{i}") for t in self.prompts.probes for i in range(self.config.gate_pictures)]

    def held_out_judge(self) -> RewardFunction | None:
        return self.judge

    def learners(self, learner: Learner) -> dict[str, Learner]:
        from .watch import Watch

        average = {} if self.average is None else {"average": self.average}
        return {"policy": learner, "watch": Watch(), **average}

    def learner(self, *args: Any, **options: Any) -> Learner:
        """As in every modality; what learns from the chain's steps needs random ones.

        Raises:
            UsageError: no step is random.
        """
        made: Any = super().learner(*args, **options)
        if not ({"forward", "outputs"} & made.objective.needs or self.policy.sampler.decides.any()):
            raise UsageError(
                "no step of this chain is random, so there is nothing to learn from: --num-inference-steps 2 or more, "
                "--eta or --noise-level above 0"
            )
        learner: Learner = made
        return learner

    def described(self) -> dict[str, str]:
        config, policy = self.config, self.policy
        trained = f"adapters of rank {config.lora_rank}" if config.lora_rank else "all weights of the denoiser"
        kinds = {"rewarded": self.prompts.rewarded, "unrewarded": self.prompts.unrewarded}
        if self.world is not None:
            outcome = "the nearest true render shows the prompt"
        elif self.judge is not None:
            outcome = f"the score of the judge {name_of(self.judge)}, which trains nothing"
        else:
            outcome = "the training reward itself, as no judge was named"
        return {
            "policy": f"{config.model or 'the small default pipeline'}, {trained}; {policy.sampler.steps} steps",
            "prompts": ", ".join(f"{len(tasks)} {kind}" for kind, tasks in kinds.items()),
            "outcome": f"{outcome}; pictures per prompt, at fixed noise: {config.eval_episodes}",
        }

    def anchors(self) -> AnchorSet | None:
        from ..trainers.learner import AnchorSet
        from ..trainers.objectives import WeightedImitation

        config = self.config
        if not config.sft_coef:
            return None
        pictures = self.real_pictures(config.sft_pictures)
        return AnchorSet(pictures, WeightedImitation(), weight=config.sft_coef, size=config.sft_batch_size)

    def stage(self, learner: Learner, reward: RewardFunction | None = None, **changes: Any) -> Any:
        """Prompts -> pictures -> reward -> the given learner -> gate; ``changes`` as in every modality."""
        from .watch import Averaged

        actor = changes.pop("actor", self.policy)
        if self.average is not None:
            actor = Averaged(actor, self.average)
        return super().stage(learner, reward or self.reward, **{"proxy": self.reward, "actor": actor} | changes)

    def real_pictures(self, count: int) -> list[Rollout]:
        """Pictures to hold on to: true renders of rewarded captions in the small world, else what the start draws."""
        import torch

        from ..trainers.randomness import generator

        random = generator("real pictures", self.config.seed)
        chosen = torch.randint(len(self.prompts.rewarded), (count,), generator=random).tolist()
        tasks = [self.prompts.rewarded[i] for i in chosen]
        if self.world is None:
            pictures = [r.output for r in self.start.act(tasks, 1, key=(self.config.seed, 1))]
        else:
            from ..envs.toys import shapes

            scenes = torch.tensor([task.extra["scene"] for task in tasks])
            pictures = list(shapes.sample(scenes, random, self.policy.adapter.height))
        return self.policy.encode(tasks, pictures, key=(self.config.seed,))

    def recorded_pairs(self, table: Table) -> list[Rollout]:
        """The pictures of a pairs file; its prompts are those of training from now on, and are no longer held out."""
        from dataclasses import replace

        from ..envs.toys import shapes
        from .offline import pairs_of
        from .prompts import Prompts, content

        adapter = self.policy.adapter
        if adapter.video:
            raise UsageError(f"{table.name} holds pairs of pictures, and this pipeline draws videos")
        pairs = pairs_of(table, (adapter.height, adapter.width))
        for task, _, _ in pairs if self.world is not None else ():
            if task.prompt not in shapes.LABELS:
                raise UsageError(
                    f'"{task.prompt}" in {table.name} is no caption of the small world: give prompts of the same kind '
                    "with --data FILE, and a reward of theirs"
                )
        tasks = [task for task, _, _ in pairs for _ in range(2)]
        rollouts = self.policy.encode(tasks, [picture for _, *two in pairs for picture in two])
        for i, rollout in enumerate(rollouts):
            rollout.info["preferred"] = i % 2 == 0
        self.preferences = len(pairs)
        learned = {content(str(task.prompt)) for task, _, _ in pairs}
        unrewarded, probes = (
            tuple(task for task in side if content(str(task.prompt)) not in learned)
            for side in (self.prompts.unrewarded, self.prompts.probes)
        )
        if not (unrewarded and probes):
            raise UsageError(f"{table.name} names every prompt that is held out: give others with --data FILE")
        self.prompts = Prompts(tuple(replace(task, category="rewarded") for task, _, _ in pairs), unrewarded, probes)
        return rollouts

    def evaluate(self, actor: Any) -> Mapping[str, Any]:
        """Judge, reward and figures on rewarded and unrewarded prompts, at noise that training never draws."""
        from .evaluation import evaluate

        return evaluate(self, actor)

    def labels_read(self, stages: Sequence[Any]) -> Sequence[str]:
        """What of training is a label: what the reward knows, true renders that are imitated, people's preferences."""
        config, found = self.config, []
        if self.preferences:
            found.append(f"people's preferences in {self.preferences} pairs, in every step")
        else:
            found += [f"reward: {known}" for known in labels_of(self.reward)]
        if config.sft_coef and self.world is not None:
            found.append(f"{config.sft_pictures} true renders of rewarded captions, imitated in every step")
        if not config.model:
            found.append("start: pretrained on true renders of every caption")
        return found

    def finish(self, folder: RunFolder) -> None:
        from .grids import write_grids

        write_grids(self, folder)
        folder.write_card()

    def save(self, path: Path, merged: bool = False) -> None:
        """Adapters as ``pipeline.load_lora_weights`` reads them; without adapters the whole pipeline."""
        from ..trainers.lora import has_lora, merge_lora
        from .lora import save_lora

        with self.shown.worn():
            if merged:
                merge_lora(self.policy.adapter.denoiser)
            if has_lora(self.policy.adapter.denoiser):
                save_lora(self.policy.adapter, path)
            else:
                self.policy.adapter.pipeline.save_pretrained(str(path))


def start(config: DiffusionConfig, folder: RunFolder | None = None, *, forward_draws: int = 2) -> Setting:
    """Load pipeline, rewards and prompts; a gradient method asks for a differentiable reward.

    Args:
        folder: the run's, whose config.json gets the defaults by model.
    """
    import torch

    from ..calling import require_columns
    from ..trainers.data import remember
    from ..trainers.distributed import barrier, from_main, is_main
    from ..trainers.precision import settle
    from .building import build_policy, check_learns, plan
    from .gradients import check_differentiable
    from .prompts import prompts_table, shapes_prompts
    from .small.pretraining import default_pipeline, quiet
    from .videos import per_frame
    from .watch import MovingAverage

    small, differentiable = not config.model, config.through_decoder
    compute = settle(config, small)
    config = shared.settled(config, small, folder, **({} if small else from_main(rows_of(config, compute))))
    if config.group_size < 2 and not differentiable:
        least = "this method compares the pictures of a prompt: --group-size 2 or more"
        raise UsageError(f"{least}, not {config.group_size}")
    if small:
        torch.set_num_threads(1)  # more gain nothing at this size
    prompts = read_own(config) if config.data else shapes_prompts(config.split, config.gate_prompts)
    if config.data:
        remember(folder, data=prompts_table(config.data))
    reward, judge, world = rewards(config, differentiable)
    for asked in (reward, judge):
        if asked is not None:
            require_columns(asked, prompts.rewarded)
    if differentiable:
        check_differentiable(reward)
    if small:
        quiet()  # bars about a thousandth of a gigabyte
        if is_main():
            default_pipeline()
        barrier()  # the others read what the main process made
    source = str(default_pipeline()) if small else config.model
    fits = _check_size if world is not None else lambda adapter: None
    policy = build_policy(config, source, compute, forward_draws=forward_draws, check=fits)
    if policy.adapter.video:
        reward, judge = (asked and per_frame(cast("Reward", asked)) for asked in (reward, judge))
    if is_main():
        print(f"memory: {plan(config, policy.adapter, compute)}")
    check_learns(policy)
    average = MovingAverage(policy, config.ema) if config.ema else None
    return Setting(config, policy, policy.fork("start"), prompts, reward, judge, world, average)


def rows_of(config: DiffusionConfig, compute: torch.dtype) -> dict[str, int]:
    """The numbers of rows that the device, or ``memory_gb``, holds, where they are left open; nothing on a CPU.

    Raises:
        UsageError: not one row.
    """
    from ..trainers.distributed import device
    from ..trainers.peak import free_memory
    from .building import rows_within

    budget = int(config.memory_gb * 1e9) or free_memory(device())
    if budget is None or None not in (config.sample_rows, config.micro_batch_rows):
        return {}
    with working(f"planning for {config.model}", after=LONG):
        return rows_within(config.resolved(small=False), config.model, compute, budget)


def plan_of(config: DiffusionConfig) -> Plan:
    """What a run will take on this process's device, told of its pipeline's configurations: no weight is read.

    Raises:
        UsageError: no such pipeline, or one of which configurations do not tell.
    """
    from ..trainers.distributed import device
    from ..trainers.precision import dtype_of
    from .building import plan_unloaded
    from .small.pretraining import default_pipeline

    small = not config.model
    compute = dtype_of(config.dtype, small, device())
    config = config.resolved(small, **({} if small else rows_of(config, compute)))
    return plan_unloaded(config, str(default_pipeline()) if small else config.model, compute)


def read_own(config: DiffusionConfig) -> Prompts:
    """The prompts of the config's own file."""
    from ..trainers.distributed import is_main
    from .prompts import file_prompts

    limits = {"unrewarded": config.eval_prompts, "probes": config.gate_prompts}
    made = file_prompts(config.data, split=config.split, **limits)
    if is_main():
        sides = f"{len(made.rewarded)} to learn from, {len(made.unrewarded)} others for reports, {len(made.probes)}"
        print(f"prompts: {sides} for the gate")
    if not config.model:
        _check_words(made)
    return made


def _check_words(prompts: Prompts) -> None:
    """Refuse prompts of which the small default pipeline knows no word."""
    from ..trainers.distributed import is_main
    from .small.pretraining import known_words

    read = {task.prompt: known_words(str(task.prompt)) for side in prompts.sides.values() for task in side}
    says = (
        "without --model the small default pipeline is trained, whose words are those of its own captions, such as "
        '"a red square at the top left on a white background"'
    )
    if strange := [prompt for prompt, (known, _) in read.items() if not known]:
        raise UsageError(f'no word of "{strange[0]}" is known: {says}: give --model for other prompts')
    if is_main() and (partly := sum(bool(unknown) for _, unknown in read.values())):
        print(f"{says}; it overlooks the other words of {partly} of {len(read)} prompts")


def rewards(config: DiffusionConfig, differentiable: bool) -> tuple[Any, RewardFunction | None, Any]:
    """The training reward, the held-out judge, and the small world's judge where its captions are drawn."""
    from ..families import require_independent
    from ..rewards.names import compose, make_reward
    from ..trainers.distributed import device

    world = None if config.data else _world()
    own: dict[str, Callable[[], Any]] = {
        "attributes": lambda: _attributes(differentiable) if world else _captions_only("attributes"),
        "nearest_render": lambda: world or _captions_only("nearest_render"),
    }
    place = str(device())
    judge: RewardFunction | None = make_reward(config.judge, place, own) if config.judge else world
    reward = compose(config.rewards, place, own, normalise=True)
    if judge is not None:
        require_independent(judge, reward)
    else:
        logger.warning("no held-out judge: name one with --judge, or nothing is gated")
    return reward, judge, world


def _check_size(adapter: PipelineAdapter) -> None:
    from ..envs.toys import shapes

    side = shapes.templates().shape[-1]
    if (adapter.height, adapter.width) != (side, side):
        raise UsageError(
            f"the small world's captions are judged at {side} x {side} pixels, and this pipeline draws "
            f"{adapter.height} x {adapter.width}: give prompts of your own with --data FILE"
        )


def _captions_only(name: str) -> NoReturn:

    raise UsageError(f"the reward {name} knows the small world's captions alone: with --data, name others")


def _world() -> NearestRender:
    from ..envs.toys import shapes
    from ..rewards.image.shapes import NearestRender

    return NearestRender(shapes.templates(), tuple(shapes.LABELS), total="fidelity")


def _attributes(differentiable: bool) -> AttributeReward:
    from ..envs.toys import shapes
    from ..rewards.image.shapes import AttributeReward, attribute_classifier

    classifier = attribute_classifier(shapes.templates(), shapes.LABELS)
    return AttributeReward(classifier, shapes.LABELS, differentiable=differentiable)
