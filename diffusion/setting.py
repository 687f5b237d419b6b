"""What every recipe for pictures shares: a pipeline with adapters, prompts, rewards, judges, evaluation, grids."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NoReturn

if TYPE_CHECKING:
    from ..rewards.shapes import AttributeReward, NearestRender
    from ..trainers.loop import Experiment, Stage
    from ..trainers.run_folder import RunFolder
    from ..types import Learner, RewardFunction, Rollout
    from .pipelines import PipelineAdapter
    from .policy import DenoisingPolicy
    from .prompts import Prompts

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DrawingConfig:
    """Fields that every recipe for pictures has."""

    pipeline: str = ""
    """A pipeline folder or hub name; empty takes the small default, made in a CPU minute at first use."""
    prompts: str = ""
    """A file with one prompt per line, or one JSON object {"prompt": ...}; empty takes the small world's captions."""
    rewards: tuple[str, ...] = ("attributes",)
    """NAME, NAME:WEIGHT, package.module:function or file.py:function; several are normalised per prompt, then added."""
    judge: str = ""
    """The held-out judge, a reward of another family; empty takes the nearest true render in the small world, else
    none: then nothing is gated."""
    seed: int = 0
    """Keys adapters, noise and the order of prompts."""
    split: int = 0
    """Which captions of the small world are unseen; settings are chosen on another than results are reported on."""
    iterations: int = 62
    """Rounds of drawing and learning."""
    prompts_per_step: int = 16
    """Prompts per round."""
    group: int = 8
    """Pictures per prompt and round."""
    lr: float = 1e-3
    """Learning rate of AdamW."""
    inner_steps: int = 1
    """Gradient steps per round."""
    max_grad_norm: float = 1.0
    """Clipping of the global gradient norm."""
    steps: int = 0
    """Denoising steps; 0 takes 6 for the small default and 50 for others."""
    sampler: Literal["auto", "ddim", "ddpm", "euler_ancestral", "flow_ancestral", "flow_sde"] = "auto"
    """Kind of Gaussian step; auto follows the pipeline's scheduler, and is flow_ancestral for flow matching."""
    eta: float = 1.0
    """Share of the ancestral noise."""
    noise_level: float = 0.7
    """a of the flow SDE (Flow-GRPO, arXiv 2505.05470; checked against the code)."""
    guidance: float | None = None
    """Scale of classifier-free guidance, in drawing and in learning; None is 1 (no guidance), and the usual scale of a
    guidance-distilled model, whose denoiser is told it."""
    lora_rank: int = 8
    """Rank of the adapters; 0 trains all weights of the denoiser."""
    lora_targets: tuple[str, ...] = ("all-linear",)
    """Ends of module names that get an adapter, such as to_q; all-linear takes every linear layer."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the pipeline's weights; auto is fp32 on CPU and bf16 on GPU. Adapters are fp32."""
    at_once: int = 1024
    """Denoiser calls held in memory at once; about 8 for SD 1.5 on 24 GB."""
    keep_graph: bool = True
    """Keep the graph of drawing for the first gradient step where it fits into at_once: faster, the same gradient."""
    ema: float = 0.0
    """Decay of an average of the weights that is evaluated and saved instead of the last ones; 0 is none."""
    eval_episodes: int = 4
    """Pictures per prompt at an evaluation, at fixed noise."""
    eval_offset: int = 0
    """First of them."""
    evaluate_every: int = 0
    """Rounds between further evaluations."""
    gate: Literal["best", "non_inferiority", "none"] = "non_inferiority"
    """A held-out judge keeps what did not fall, or the best so far and stops when it stays away."""
    gate_every: int = 8
    gate_pictures: int = 4
    """Pictures per probe prompt."""
    gate_margin: float = 0.1
    """How far the judge may fall; for the small world the logarithm of the error to the true render."""
    gate_patience: int = 2
    """Looks without a new best before the best one's gate stops the run."""
    grid: int = 6
    """Prompts of each kind whose pictures are shown before and after."""


TINY: Mapping[str, Any] = {
    "iterations": 2,
    "prompts_per_step": 3,
    "eval_episodes": 1,
    "gate_every": 1,
    "gate_pictures": 1,
    "grid": 2,
}
"""What makes a recipe end in seconds."""


@dataclass(eq=False)
class Setting:
    """A started run."""

    config: DrawingConfig
    policy: DenoisingPolicy
    start: DenoisingPolicy
    prompts: Prompts
    reward: RewardFunction
    judge: RewardFunction | None
    world: NearestRender | None
    average: Any = None

    @property
    def shown(self) -> Any:
        """The policy that is evaluated and saved: the average, where there is one."""
        return self.policy if self.average is None else self.average.average

    def learner(self, objective: Any, *, kind: Any = None, **options: Any) -> Learner:
        """A learner of the policy with the config's optimisation; the start is the reference that it may ask for."""
        from ..trainers.learner import Optimisation, PolicyLearner

        config = self.config
        how = Optimisation(config.lr, config.inner_steps, max_grad_norm=config.max_grad_norm, seed=config.seed)
        made: Learner = (kind or PolicyLearner)(
            self.policy, objective, how, references={"start": self.start}, **options
        )
        return made

    def stage(self, learner: Learner, *, actor: Any = None, reward: Any = None, **sampling: Any) -> Stage:
        """Prompts -> pictures -> reward -> the given learner -> gate. ``sampling`` goes to ``act``."""
        from ..trainers.curricula import Uniform
        from ..trainers.loop import Stage
        from .prompts import source_of
        from .watch import Watch

        config = self.config
        learners: dict[str, Learner] = {"policy": learner, "watch": Watch()}
        if self.average is not None:
            learners["average"] = self.average
        source = source_of(self.prompts.seen, config.seed)
        return Stage(
            steps=config.iterations,
            actor=self.policy if actor is None else actor,
            curriculum=Uniform({"seen": source}, seed=config.seed),
            reward=reward or self.reward,
            learners=learners,
            tasks_per_step=config.prompts_per_step,
            group_size=config.group,
            sampling=sampling,
            gate=self.gate(),
            gate_every=config.gate_every,
        )

    def real_pictures(self, count: int) -> list[Rollout]:
        """Pictures to hold on to: true renders of seen captions in the small world, else what the start draws."""
        import torch

        from ..trainers.randomness import generator

        random = generator("real pictures", self.config.seed)
        chosen = torch.randint(len(self.prompts.seen), (count,), generator=random).tolist()
        tasks = [self.prompts.seen[i] for i in chosen]
        if self.world is None:
            pictures = [r.output for r in self.start.act(tasks, 1, key=(self.config.seed, 1))]
        else:
            from ..envs import shapes

            scenes = torch.tensor([task.extra["scene"] for task in tasks])
            pictures = list(shapes.sample(scenes, random, self.policy.adapter.height))
        return self.policy.encode(tasks, pictures, key=(self.config.seed,))

    def recorded_pairs(self, path: str) -> list[Rollout]:
        """The pictures of a pairs file; its prompts are those of training from now on, and are no longer held out."""
        from dataclasses import replace

        from ..envs import shapes
        from ..errors import UsageError
        from .offline import read_pairs
        from .prompts import Prompts

        adapter = self.policy.adapter
        pairs = read_pairs(path, (adapter.height, adapter.width))
        for task, _, _ in pairs if self.world is not None else ():
            if task.prompt not in shapes.LABELS:
                raise UsageError(
                    f'"{task.prompt}" in {path} is no caption of the small world: give prompts of the same kind '
                    "with --prompts FILE, and a reward of theirs"
                )
        tasks = [task for task, _, _ in pairs for _ in range(2)]
        rollouts = self.policy.encode(tasks, [picture for _, *two in pairs for picture in two])
        for i, rollout in enumerate(rollouts):
            rollout.info["preferred"] = i % 2 == 0
        learned = {task.prompt for task, _, _ in pairs}
        unseen, probes = (
            tuple(task for task in side if task.prompt not in learned)
            for side in (self.prompts.unseen, self.prompts.probes)
        )
        if not (unseen and probes):
            raise UsageError(f"{path} names every prompt that is held out: give others with --prompts FILE")
        self.prompts = Prompts(tuple(replace(task, category="seen") for task, _, _ in pairs), unseen, probes)
        return rollouts

    def gate(self) -> Any:
        """What the held-out judge decides on the probes; None without a judge."""
        from dataclasses import replace

        from ..trainers.gates import BestSoFar, NonInferiority

        if self.config.gate == "none" or self.judge is None:
            return None
        probes = [replace(t, id=f"{t.id}/{i}") for t in self.prompts.probes for i in range(self.config.gate_pictures)]
        if self.config.gate == "best":
            return BestSoFar(probes, self.judge, self.config.gate_patience, reward=self.reward, sampling={})
        return NonInferiority(probes, self.judge, margin=self.config.gate_margin, reward=self.reward, sampling={})

    def evaluate(self, actor: Any) -> Mapping[str, Any]:
        """Judge, reward and figures on seen and unseen prompts, at noise that training never draws."""
        from .evaluation import evaluate

        drawing = getattr(actor, "policy", actor)
        return evaluate(self, self.shown if drawing is self.policy else drawing)

    def experiment(self, stages: Sequence[Stage]) -> Experiment:
        """Stages with this setting's evaluation, grids and model card around them."""
        from ..trainers.loop import Experiment
        from .evaluation import write_grids

        def finish(folder: RunFolder) -> None:
            write_grids(self, folder)
            self.save(folder.path / "policy")
            folder.write_card()

        return Experiment(
            stages,
            self.evaluate,
            evaluate_every=self.config.evaluate_every,
            seed=self.config.seed,
            label_account="gate_labels: none",
            cpu_clock=time.process_time,
            finish=finish,
        )

    def save(self, place: Any) -> None:
        """Adapters as ``pipeline.load_lora_weights`` reads them; without adapters the whole pipeline."""
        from .lora import save_lora

        with self.shown.worn():
            if self.config.lora_rank:
                save_lora(self.policy.adapter, place)
            else:
                self.policy.adapter.pipeline.save_pretrained(str(place))


def start(config: DrawingConfig, *, differentiable: bool = False, forward_draws: int = 2) -> Setting:
    """Load pipeline, rewards and prompts; a gradient method asks for a differentiable reward."""
    import torch

    from ..errors import UsageError
    from ..trainers.distributed import barrier, device, is_main
    from ..trainers.lora import add_lora
    from .gradients import check_differentiable
    from .pipelines import adapter_for, check_dtype, load
    from .policy import DenoisingPolicy
    from .pretraining import default_pipeline, quiet
    from .prompts import file_prompts, shapes_prompts
    from .watch import MovingAverage

    if config.group < 2 and not differentiable:
        raise UsageError(f"this method compares the pictures of a prompt: --group 2 or more, not {config.group}")
    small = not config.pipeline
    if small:
        torch.set_num_threads(1)  # more gain nothing at this size
    dtypes = {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    check_dtype(dtypes[config.dtype], device())
    prompts = file_prompts(config.prompts, config.seed) if config.prompts else shapes_prompts(config.split)
    reward, judge, world = rewards(config, differentiable)
    if differentiable:
        check_differentiable(reward)
    if small:
        quiet()  # bars about a thousandth of a gigabyte
        if is_main():
            default_pipeline()
        barrier()  # the others read what the main process made
    source = str(default_pipeline()) if small else config.pipeline
    adapter = adapter_for(load(source, dtype=dtypes[config.dtype], device=device()), guidance=config.guidance)
    if world is not None:
        _check_size(adapter)
    if config.lora_rank:
        named = list(config.lora_targets)
        add_lora(
            adapter.denoiser, config.lora_rank, "all-linear" if named == ["all-linear"] else named, seed=config.seed
        )
    else:
        adapter.denoiser.requires_grad_(True)
    guidance = (adapter.guidance if adapter.distilled else 1.0) if config.guidance is None else config.guidance
    policy = DenoisingPolicy(
        adapter,
        sampler(config, adapter),
        guidance=guidance,
        at_once=config.at_once,
        forward_draws=forward_draws,
        autocast=torch.bfloat16 if device().type == "cuda" else None,
    )
    if is_main():
        print(f"memory: {_plan(config, policy, differentiable)}")
    average = MovingAverage(policy, config.ema) if config.ema else None
    return Setting(config, policy, policy.fork("start"), prompts, reward, judge, world, average)


def _plan(config: DrawingConfig, policy: DenoisingPolicy, differentiable: bool) -> Any:
    from .memory import memory_plan

    pictures = config.prompts_per_step * config.group
    steps = policy.sampler.steps
    return memory_plan(
        policy.adapter,
        batch=min(config.at_once, pictures if differentiable else pictures * steps),
        steps=steps,
        grad_steps=steps if differentiable else 1,
        guided=policy.guidance != 1.0,
        decoded=differentiable,
    )


def sampler(config: DrawingConfig, adapter: Any) -> Any:
    """The chain that a config asks for."""
    from .sampler import sampler_for

    steps = config.steps or (50 if config.pipeline else 6)
    flow = "FlowMatch" in type(adapter.scheduler).__name__
    kind = "flow_ancestral" if config.sampler == "auto" and flow else config.sampler
    noise: Any = {"eta": config.eta, "noise_level": config.noise_level}
    return sampler_for(adapter.scheduler, steps, kind, **noise, set_timesteps=adapter.set_timesteps)


def rewards(config: DrawingConfig, differentiable: bool) -> tuple[Any, RewardFunction | None, Any]:
    """The training reward, the held-out judge, and the small world's judge where its captions are drawn."""
    from ..rewards.names import compose, image_reward
    from ..trainers.distributed import device

    world = None if config.prompts else _world()
    own: dict[str, Callable[[], Any]] = {
        "attributes": lambda: _attributes(differentiable) if world else _captions_only("attributes"),
        "nearest_render": lambda: world or _captions_only("nearest_render"),
    }
    place = str(device())
    judge: RewardFunction | None = image_reward(config.judge, place, own) if config.judge else world
    reward = compose(config.rewards, place, own)
    if judge is None:
        logger.warning("no held-out judge: name one with --judge, or nothing is gated")
    return reward, judge, world


def _check_size(adapter: PipelineAdapter) -> None:
    from ..envs import shapes
    from ..errors import UsageError

    side = shapes.templates().shape[-1]
    if (adapter.height, adapter.width) != (side, side):
        raise UsageError(
            f"the small world's captions are judged at {side} x {side} pixels, and this pipeline draws "
            f"{adapter.height} x {adapter.width}: give prompts of your own with --prompts FILE"
        )


def _captions_only(name: str) -> NoReturn:
    from ..errors import UsageError

    raise UsageError(f"the reward {name} knows the small world's captions alone: with --prompts, name others")


def _world() -> NearestRender:
    from ..envs import shapes
    from ..rewards.shapes import NearestRender

    return NearestRender(shapes.templates(), tuple(shapes.LABELS), total="fidelity")


def _attributes(differentiable: bool) -> AttributeReward:
    from ..envs import shapes
    from ..rewards.shapes import AttributeReward, attribute_classifier

    classifier = attribute_classifier(shapes.templates(), shapes.LABELS)
    return AttributeReward(classifier, shapes.LABELS, differentiable=differentiable)
