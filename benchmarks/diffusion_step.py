"""What a training step of a denoising policy costs, in time and in memory, alone and against TRL 0.23.1.

    python benchmarks/diffusion_step.py [--quick] [--json FILE] [--rounds N] [--trl-python PATH]

A step is sampling, reward and update: 32 pictures of 8 prompts in 10 DDIM steps (eta 1) with guidance 5, LoRA of rank 4
on the projections of all attention layers, from a Stable Diffusion pipeline of 0.8 M parameters with random weights
(latents 4 x 16 x 16), which is written to a folder and read by both sides. The reward is the pictures' redness, next to
nothing to compute. Nothing is learned that matters; the steps are real.

DDPO and PRDP keep the graph of drawing, as their recipes do where rows times steps fit; *in pieces* they draw without
a graph and recompute as many denoiser calls at once as there are pictures, which is what TRL's DDPO holds, too.

One thread on one core. Every round runs all contestants once, in an order that turns; a ratio is taken within a round,
and the figure is the median over rounds. Its interval is the lowest and the highest round, which holds the true
median with probability 1 - 2^(1 - rounds). Figures are CPU seconds; wall seconds stand beside them.

Memory is counted in two ways. *Saved*: bytes of the distinct storages that autograd holds at once, weights left out.
*Resident*: the most that a fresh process holds during a first step, above what it holds before it, mean of two
processes; this is how the two sides are compared, since what non-reentrant checkpoints hold is not visible from
outside.

TRL lives in an environment of its own; ``benchmarks/peers/trl_diffusion.py`` says how to make it. Without it, and with
``--quick``, the comparison is left out. ``--quick`` stays in one process and counts no resident memory, either.
"""

from __future__ import annotations

import argparse
import json
import os
import string
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Self, cast

import torch
from common import Worker, measured, parser_of, race, ratio, save
from peers.trl_diffusion import PROMPTS, redness, serve
from torch import Tensor

HERE = Path(__file__).parent
REQUIRED = {
    "alignprop_memory_ratio": "<= 0.02",
    "alignprop_time_ratio": "<= 1.35",
    "prdp_over_ddpo_memory": "<= 1.1",
    "prdp_over_ddpo_time": "<= 1.2",
    "alignprop_vs_trl": ">= 1.2",
    "ddpo_vs_trl": ">= 1.2",
    "alignprop_memory_vs_trl": "<= 0.5",
}


@dataclass(frozen=True)
class Setting:
    """What both sides do."""

    batch: int = 32
    steps: int = 10
    guidance: float = 5.0
    rank: int = 4
    piece: int = 8
    """Pictures at once in the AlignProp contestants that work piecewise."""


# --- the pipeline -----------------------------------------------------------------------------------


def write_pipeline(folder: Path) -> None:
    """A small Stable Diffusion pipeline that diffusers 0.35 with transformers 4 reads as well as ours."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from safetensors.torch import load_file, save_file
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    letters = string.ascii_lowercase + string.digits
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
    text = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=64,
        intermediate_size=128,
        projection_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        norm_num_groups=8,
        layers_per_block=1,
        attention_head_dim=2,  # the number of heads, by an old misnomer
        cross_attention_dim=64,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 32),
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=32,
        latent_channels=4,
    )
    noise = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**noise, clip_sample=False, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    # What transformers 4 looks for: the tokenizer as two files, and the text encoder's weights under a prefix.
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    weights = folder / "text_encoder" / "model.safetensors"
    named = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in load_file(weights).items()}
    save_file(named, weights, metadata={"format": "pt"})


# --- our side ---------------------------------------------------------------------------------------


class Redness:
    """``redness`` as a reward of ours."""

    differentiable = True

    def __call__(self, outputs: Tensor, **_: Any) -> Tensor:
        return redness(outputs)[0]


class Bench:
    """One policy, and a learner per method; ``step`` is one training step as the loop makes it."""

    def __init__(self, folder: Path, setting: Setting) -> None:
        from autotelic.diffusion.beta import PairwiseLearner
        from autotelic.diffusion.gradients import RewardGradient, Truncation
        from autotelic.diffusion.pipelines import adapter_for, load
        from autotelic.diffusion.policy import DenoisingPolicy
        from autotelic.diffusion.sampler import sampler_for
        from autotelic.trainers.advantages import grpo
        from autotelic.trainers.learner import Optimisation, PolicyLearner
        from autotelic.trainers.lora import add_lora
        from autotelic.trainers.objectives import PairwiseRegression, PPOClip
        from autotelic.trainers.pairing import all_pairs
        from autotelic.types import Task

        self.setting, self.truncation = setting, Truncation("fixed", setting.steps)
        adapter = adapter_for(load(folder))
        add_lora(adapter.denoiser, setting.rank, ("to_q", "to_k", "to_v", "to_out.0"))
        sampler = sampler_for(adapter.scheduler, setting.steps, "ddim", set_timesteps=adapter.set_timesteps)
        self.policy = policy = DenoisingPolicy(adapter, sampler, guidance=setting.guidance)
        self.tasks = [Task(prompt, prompt) for prompt in PROMPTS]
        self.reward, self.count = Redness(), 0
        self.start = policy.fork("start")
        self.learners: dict[str, PolicyLearner] = {
            "alignprop": PolicyLearner(
                policy, RewardGradient(self.reward), Optimisation(1e-3), prepare=[lambda batch: self.truncation(batch)]
            ),
            "ddpo": PolicyLearner(policy, PPOClip(1e-4, 1e-4), Optimisation(3e-4), advantage=grpo()),
            "prdp": PairwiseLearner(
                policy,
                PairwiseRegression(1.0, "start", clip=0.2),
                Optimisation(3e-4),
                kappa=40.0,
                prepare=[all_pairs],
                references={"start": self.start},
            ),
        }

    def step(self, settings: Mapping[str, Any]) -> dict[str, float]:
        """CPU seconds of a step's parts; settings: method, gradient_steps, checkpointing, keep_graph, rows."""
        from autotelic.diffusion.gradients import Truncation
        from autotelic.trainers.scoring import score

        learner, inner = self.learners[settings["method"]], [0.0]
        self.truncation = Truncation("fixed", settings.get("gradient_steps", self.setting.steps))
        self.policy.checkpointing = settings.get("checkpointing", True)
        for policy in (self.policy, self.start):
            policy.sample_rows = policy.micro_batch_rows = settings.get("rows", self.setting.batch)
        self.count += 1
        started = time.process_time()
        keep, each = settings.get("keep_graph", False), self.setting.batch // len(self.tasks)
        rollouts = self.policy.act(self.tasks, each, key=(self.count,), keep_graph=keep)
        score(rollouts, self.reward)
        sampled = time.process_time()
        with timed(learner, "_step", inner):
            learner.update(rollouts)
        return {"sampling": sampled - started, "update": time.process_time() - sampled, "inner": inner[0]}


@contextmanager
def timed(owner: Any, name: str, total: list[float]) -> Iterator[None]:
    """Add up the CPU seconds of a method's calls."""
    method = getattr(owner, name)

    def clocked(*inputs: Any) -> Any:
        started = time.process_time()
        try:
            return method(*inputs)
        finally:
            total[0] += time.process_time() - started

    setattr(owner, name, clocked)
    try:
        yield
    finally:
        delattr(owner, name)


# --- what autograd holds ----------------------------------------------------------------------------


@dataclass
class Saved:
    """Bytes of the distinct storages that autograd holds, now and at most."""

    weights: frozenset[int]
    held: dict[int, int] = field(default_factory=dict)
    now: int = 0
    most: int = 0

    def pack(self, tensor: Tensor) -> Tensor | Held:
        return tensor if _address(tensor) in self.weights else Held(self, tensor)

    @contextmanager
    def watching(self) -> Iterator[Self]:
        with torch.autograd.graph.saved_tensors_hooks(self.pack, lambda kept: getattr(kept, "tensor", kept)):
            yield self


class Held:
    """A tensor that autograd holds until it drops this object."""

    def __init__(self, saved: Saved, tensor: Tensor) -> None:
        self.saved, self.tensor, self.address = saved, tensor, _address(tensor)
        self.size = cast(Any, tensor).untyped_storage().nbytes()
        if not saved.held.get(self.address):
            saved.now += self.size
            saved.most = max(saved.most, saved.now)
        saved.held[self.address] = saved.held.get(self.address, 0) + 1

    def __del__(self) -> None:
        self.saved.held[self.address] -= 1
        if not self.saved.held[self.address]:
            self.saved.now -= self.size


def _address(tensor: Tensor) -> int:
    return int(cast(Any, tensor).untyped_storage().data_ptr())


def saved_bytes(bench: Bench, settings: Mapping[str, Any]) -> dict[str, int]:
    """At most in a step, and what is held when the reward's gradient arrives: graphs, and the chain's latents."""
    parts = [part for part in bench.policy.adapter.pipeline.components.values() if isinstance(part, torch.nn.Module)]
    saved = Saved(frozenset(_address(w) for part in parts for w in (*part.parameters(), *part.buffers())))
    policy, found = bench.policy, {"between": 0}
    plain = policy.backward

    def backward(batch: Any, cotangents: Any) -> None:
        found["between"] = saved.now + batch.payload["path"].nbytes
        plain(batch, cotangents)

    policy.backward = backward  # type: ignore[method-assign]
    try:
        with saved.watching():
            bench.step(settings)
    finally:
        del policy.backward
    return {"most": saved.most, **found}


# --- contestants ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contestant:
    """A side (ours, or TRL with so many parts of the batch), and the settings of its step."""

    side: str
    settings: Mapping[str, Any]


def ours(setting: Setting) -> dict[str, dict[str, Any]]:
    """The settings of our steps that are compared with each other."""
    kept = {"keep_graph": True, "rows": setting.batch * setting.steps}
    return {
        "alignprop": {"method": "alignprop"},
        "alignprop, no checkpoints": {"method": "alignprop", "checkpointing": False},
        "ddpo": {"method": "ddpo"} | kept,
        "ddpo in pieces": {"method": "ddpo"},
        "prdp": {"method": "prdp"} | kept,
        "prdp in pieces": {"method": "prdp"},
    }


def contestants(setting: Setting, trl: bool) -> dict[str, Contestant]:
    piece, parts = setting.piece, setting.batch // setting.piece
    found = {name: Contestant("ours", settings) for name, settings in ours(setting).items()}
    if trl:
        found |= {
            "alignprop, last step": Contestant("ours", {"method": "alignprop", "gradient_steps": 1}),
            f"alignprop, {piece} at once": Contestant("ours", {"method": "alignprop", "rows": piece}),
            "trl alignprop": Contestant("trl alignprop 1", {}),
            "trl alignprop, last step": Contestant("trl alignprop 1", {"gradient_steps": 1}),
            f"trl alignprop, {piece} at once": Contestant(f"trl alignprop {parts}", {}),
            "trl ddpo": Contestant("trl ddpo 1", {}),
        }
    return found


def command(side: str, folder: Path, options: argparse.Namespace) -> list[str]:
    if side == "ours":
        return [sys.executable, __file__, "--worker", str(folder)]
    _, method, parts = side.split()
    setting = setting_of(options)
    given = {"method": method, "parts": parts, "batch": setting.batch, "steps": setting.steps}
    words = [f"--{name}={value}" for name, value in (given | {"guidance": setting.guidance}).items()]
    return [str(options.trl_python), str(HERE / "peers" / "trl_diffusion.py"), f"--pipeline={folder}", *words]


def raced(runners: Mapping[str, Contestant], sides: Mapping[str, Any], rounds: int) -> dict[str, list[Any]]:
    """``race`` after a step of each side that is not counted."""
    for step in sides.values():
        step({"method": "ddpo"})
    return race({name: partial(sides[one.side], one.settings) for name, one in runners.items()}, rounds)


def resident(runners: Mapping[str, Contestant], folder: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """MiB that each contestant's step takes at most, in fresh processes."""
    runners = {name: runner for name, runner in runners.items() if "gradient_steps" not in runner.settings}
    found: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(2):
        for name, runner in runners.items():
            worker = Worker(command(runner.side, folder, options))
            found[name].append(worker.step(runner.settings)["peak"] / 2**20)
            worker.close()
    print(f"resident MiB: {found}", file=sys.stderr, flush=True)
    return found


# --- the figures ------------------------------------------------------------------------------------


def time_figures(costs: dict[str, list[Any]], setting: Setting) -> dict[str, dict[str, Any]]:
    piecewise = f"alignprop, {setting.piece} at once"
    pairs = {
        "alignprop_time_ratio": ("alignprop", "alignprop, no checkpoints"),
        "prdp_over_ddpo_time": ("prdp", "ddpo"),
        "prdp_pieces_over_ddpo_pieces_time": ("prdp in pieces", "ddpo in pieces"),
        "ddpo_pieces_over_ddpo_time": ("ddpo in pieces", "ddpo"),
        "prdp_pieces_over_prdp_time": ("prdp in pieces", "prdp"),
        "alignprop_vs_trl": ("trl alignprop", "alignprop"),
        "alignprop_last_step_vs_trl": ("trl alignprop, last step", "alignprop, last step"),
        "alignprop_piecewise_vs_trl": (f"trl {piecewise}", piecewise),
        "alignprop_piecewise_vs_trl_at_once": ("trl alignprop", piecewise),
        "ddpo_vs_trl": ("trl ddpo", "ddpo"),
        "ddpo_pieces_vs_trl": ("trl ddpo", "ddpo in pieces"),
    }
    found: dict[str, dict[str, Any]] = {}
    for name, (above, below) in pairs.items():
        if above in costs and below in costs:
            found[name] = {unit: ratio(costs[above], costs[below], unit) for unit in ("cpu", "wall")}
    found["prdp_over_ddpo_inner_step_time"] = {"cpu": ratio(costs["prdp"], costs["ddpo"], "inner")}
    found["prdp_pieces_over_ddpo_pieces_inner_step_time"] = {
        "cpu": ratio(costs["prdp in pieces"], costs["ddpo in pieces"], "inner")
    }
    found["alignprop_time_ratio"]["cpu of the update"] = ratio(
        costs["alignprop"], costs["alignprop, no checkpoints"], "update"
    )
    return found


def memory_figures(
    bench: Bench, setting: Setting, peaks: Mapping[str, list[float]]
) -> tuple[dict[str, float], dict[str, Any]]:
    """The figures, and the bytes behind them."""
    saved = {name: saved_bytes(bench, settings) for name, settings in ours(setting).items()}
    whole, middle = saved["alignprop, no checkpoints"]["most"], {name: median(rows) for name, rows in peaks.items()}
    found = {
        "alignprop_memory_ratio": saved["alignprop"]["between"] / whole,
        "alignprop_recompute_peak_ratio": saved["alignprop"]["most"] / whole,
        "prdp_over_ddpo_memory": saved["prdp"]["most"] / saved["ddpo"]["most"],
        "prdp_pieces_over_ddpo_pieces_memory": saved["prdp in pieces"]["most"] / saved["ddpo in pieces"]["most"],
        "ddpo_pieces_over_ddpo_memory": saved["ddpo in pieces"]["most"] / saved["ddpo"]["most"],
    }
    if peaks:
        found["prdp_over_ddpo_resident"] = middle["prdp"] / middle["ddpo"]
        found["prdp_pieces_over_ddpo_pieces_resident"] = middle["prdp in pieces"] / middle["ddpo in pieces"]
        found["alignprop_resident_ratio"] = middle["alignprop"] / middle["alignprop, no checkpoints"]
    if "trl alignprop" in peaks:
        piecewise = f"alignprop, {setting.piece} at once"
        found["alignprop_memory_vs_trl"] = middle["alignprop"] / middle["trl alignprop"]
        found["alignprop_piecewise_memory_vs_trl"] = middle[piecewise] / middle[f"trl {piecewise}"]
        found["alignprop_piecewise_memory_vs_trl_at_once"] = middle[piecewise] / middle["trl alignprop"]
        found["ddpo_memory_vs_trl"] = middle["ddpo"] / middle["trl ddpo"]
        found["ddpo_pieces_memory_vs_trl"] = middle["ddpo in pieces"] / middle["trl ddpo"]
    return found, {"saved_bytes": saved, "resident_mib": peaks}


def setting_of(options: argparse.Namespace) -> Setting:
    return Setting(batch=16, steps=3) if options.quick else Setting()


def main() -> None:
    parser = parser_of(__doc__, "16 pictures of 3 steps, two rounds, without TRL")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trl-python", type=Path, default=HERE / ".trl" / "bin" / "python")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)  # what our own side is started with
    options = parser.parse_args()
    torch.set_num_threads(1)
    setting = setting_of(options)
    if options.worker:
        serve(Bench(options.worker, setting).step)
        return
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.environ["OMP_NUM_THREADS"] = "1"
    trl = not options.quick and options.trl_python.exists()
    options.rounds = 2 if options.quick else options.rounds
    if not trl:
        why = "--quick" if options.quick else f"no {options.trl_python}"
        print(f"without TRL ({why})", file=sys.stderr)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pipeline(folder)
        runners = contestants(setting, trl)
        bench = Bench(folder, setting)
        if options.quick:
            memory, counted = memory_figures(bench, setting, {})
            costs = raced(runners, {"ours": partial(measured, bench.step)}, options.rounds)
        else:
            memory, counted = memory_figures(bench, setting, resident(runners, folder, options))
            workers = {side: Worker(command(side, folder, options)) for side in {r.side for r in runners.values()}}
            costs = raced(runners, {side: worker.step for side, worker in workers.items()}, options.rounds)
            for worker in workers.values():
                worker.close()
    times = time_figures(costs, setting)
    figures = {name: round(value, 5) for name, value in memory.items()}
    figures |= {name: units["cpu"]["median"] for name, units in times.items()}
    result = {name: figures.get(name) for name in REQUIRED} | {
        "further": {name: value for name, value in figures.items() if name not in REQUIRED},
        "required": REQUIRED,
        "intervals": times,
        **counted,
        "seconds": costs,
        "setting": vars(setting),
        "with_trl": trl,
    }
    print(json.dumps({name: figures[name] for name in figures}, indent=1))
    save(options, result)


if __name__ == "__main__":
    main()
