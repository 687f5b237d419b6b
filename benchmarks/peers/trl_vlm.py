"""One training step of TRL 1.16's GRPO on a vision-language model at a time, for ``benchmarks/vlm_step.py``.

It runs in an environment of its own:

    python -m venv benchmarks/.trl116
    benchmarks/.trl116/bin/pip install trl==1.16.0 transformers==5.23.0 torch==2.14.1 torchvision==0.29.1

Every line of stdin starts a step; the answer is a line of JSON with what it cost. Defaults are TRL's but for what the
two sides share: model, processor, prompts, images, reward, completions of a fixed length, learning rate, no gradient
checkpointing. Nothing is logged or saved.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

COLOURS = ("red", "blue", "green", "cyan", "pink", "grey", "black", "white")
SHAPES = ("circle", "square", "star", "heart", "cross", "moon", "ring", "bar")
WORDS = (
    "how",
    "many",
    "of",
    "the",
    "are",
    "left",
    "right",
    "in",
    "picture",
    "?",
    "user",
    "assistant",
    ":",
    "yes",
    "no",
)
WORDS += ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def question(number: int) -> str:
    return f"how many of the {COLOURS[number]} {SHAPES[number]} are left of the {SHAPES[-1 - number]} ?"


def worth(completion: str) -> float:
    """How much of a completion is colours and shapes."""
    words = completion.split()
    return sum(word in COLOURS or word in SHAPES for word in words) / max(1, len(words))


def memory(name: str) -> int:
    """Bytes of this process: VmRSS, what it holds, or VmHWM, the most it has held."""
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(rows[name].split()[0]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--size", type=int, required=True, help="pixels of an image's side")
    parser.add_argument("--completions", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"}
    warnings.simplefilter("ignore")
    import numpy as np
    import torch
    from datasets import Dataset
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    rows = []
    for number in range(len(COLOURS)):
        pixels = random.integers(0, 256, (options.size, options.size, 3), dtype=np.uint8)
        prompt = [{"role": "user", "content": question(number)}]
        rows.append({"prompt": prompt, "image": Image.fromarray(pixels)})

    def reward(completions: list[Any], **_: Any) -> list[float]:
        return [worth(completion[0]["content"]) for completion in completions]

    class Paced(TrainerCallback):
        """A step begins when a line comes, and tells its cost when it has ended."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if not sys.stdin.readline():
                os._exit(0)
            self.cpu, self.wall = time.process_time(), time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            cost = {"cpu": time.process_time() - self.cpu, "wall": time.perf_counter() - self.wall}
            print(json.dumps(cost | {"peak": memory("VmHWM")}), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            learning_rate=1e-3,
            per_device_train_batch_size=len(rows) * options.completions,
            num_generations=options.completions,
            max_completion_length=options.tokens,
            generation_kwargs={"min_new_tokens": options.tokens},
            max_steps=100_000,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            model=AutoModelForImageTextToText.from_pretrained(options.model),
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoProcessor.from_pretrained(options.model),
            callbacks=[Paced()],
        )
        print(json.dumps({"ready": True}), flush=True)
        trainer.train()


if __name__ == "__main__":
    main()
