"""One training step of TRL 0.23.1's AlignProp or DDPO at a time, for ``benchmarks/diffusion_step.py``.

It runs in an environment of its own, since TRL 0.24 removed both trainers and they want transformers 4:

    python -m venv benchmarks/.trl
    benchmarks/.trl/bin/pip install trl==0.23.1 transformers==4.57.1 diffusers==0.35.2 peft==0.17.1 \\
        accelerate==1.11 huggingface_hub==0.36 torch==2.14.1 torchvision==0.29.1

Every line of stdin is a JSON object of settings for one step; the answer is a line of JSON with what it cost.
Defaults are TRL's but for what the two sides share: pipeline, batch, steps, guidance, rank 4 on the same layers.
No pictures are logged, and no checkpoints are written.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

PROMPTS = ("a red cat", "a blue cat", "a red dog", "a blue dog", "a red cup", "a blue cup", "a red hat", "a blue hat")


def redness(images: torch.Tensor, *_: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    """How much red exceeds blue in each picture [B, 3, H, W] of 0..1; with gradient."""
    return (images[:, 0] - images[:, 2]).flatten(1).mean(1), {}


def prompt_source() -> Callable[[], tuple[str, dict[str, Any]]]:
    """Each prompt four times in turn."""
    turns: Iterator[str] = itertools.cycle(prompt for prompt in PROMPTS for _ in range(4))
    return lambda: (next(turns), {})


def trainer_of(options: argparse.Namespace) -> Any:
    from accelerate import PartialState
    from trl import AlignPropConfig, AlignPropTrainer, DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline

    PartialState(cpu=True)  # without it the trainers fail when they are given no hook for pictures
    pipeline = DefaultDDPOStableDiffusionPipeline(str(options.pipeline), use_lora=True)
    part = options.batch // options.parts
    shared = {
        "mixed_precision": "no",
        "sample_num_steps": options.steps,
        "sample_guidance_scale": options.guidance,
        "train_batch_size": part,
        "train_gradient_accumulation_steps": options.parts,
        "accelerator_kwargs": {"cpu": True},
    }
    if options.method == "alignprop":
        config = AlignPropConfig(truncated_backprop_rand=False, truncated_backprop_timestep=0, **shared)
        trainer = AlignPropTrainer(config, redness, prompt_source(), pipeline)
    else:
        batches = {"sample_batch_size": part, "sample_num_batches_per_epoch": options.parts}
        trainer = DDPOTrainer(DDPOConfig(**batches, **shared), redness, prompt_source(), pipeline)
    trainer.sd_pipeline.set_progress_bar_config(disable=True)
    return trainer


def memory(name: str) -> int:
    """Bytes of this process: VmRSS, what it holds, or VmHWM, the most it has held."""
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(rows[name].split()[0]) * 1024


def measured(step: Callable[[Any], dict[str, float]], settings: Any) -> dict[str, float]:
    """Seconds of one step, and what else it says of itself."""
    cpu, wall = time.process_time(), time.perf_counter()
    further = step(settings)
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall} | further


def serve(step: Callable[[Any], dict[str, float]]) -> None:
    """Answer every line of stdin by what a step cost; "peak" is in bytes above the level before the first one."""
    level = memory("VmRSS")
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS
        cost = measured(step, json.loads(line))
        print(json.dumps(cost | {"peak": memory("VmHWM") - level}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=("alignprop", "ddpo"), required=True)
    parser.add_argument("--pipeline", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--parts", type=int, default=1, help="gradient accumulation: the batch in so many parts")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--guidance", type=float, default=5.0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    trainer = trainer_of(options)

    def step(settings: dict[str, Any]) -> dict[str, float]:
        trainer.config.truncated_backprop_timestep = options.steps - settings.get("gradient_steps", options.steps)
        trainer.step(0, 0)  # epoch 0 is never saved
        return {}

    serve(step)


if __name__ == "__main__":
    main()
