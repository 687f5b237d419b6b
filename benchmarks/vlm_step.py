"""What a GRPO step of a vision-language model costs, in time and in memory, alone and against TRL 1.16.

    python benchmarks/vlm_step.py [--quick] [--json FILE] [--rounds N] [--trl-python PATH]

A step is sampling, reward and update: 8 prompts of one image each, 8 completions per prompt, 32 tokens per
completion, by a Qwen2-VL of about 0.25 M parameters (hidden 64, two layers of vision, two of language) with random
weights, which is written to a folder and read by both sides; its images have 64 x 64 (16 visual tokens) or 224 x 224
pixels (196). Nothing is learned that matters; the steps are real. The end token is banned, so that all completions
have 32 tokens.

Contestants are ours; ours without sharing, where every completion has a prompt and an image of its own, which is how
trainers without shared prefixes compute; and TRL's GRPOTrainer. Every step of ours asks new questions: nothing that was
made of an image or a text is kept from the step before.

One thread on one core. Every round runs all contestants once, in an order that turns; a ratio is taken within a round,
and the figure is the median over rounds. Its interval is the lowest and the highest round, which holds the true median
with probability 1 - 2^(1 - rounds). Figures are CPU seconds; wall seconds stand beside them.

Memory is the most that a process ever held (VmHWM), libraries included, after its rounds. The gradient of our step is
compared with that of the model's own forward pass over all prompts and completions, nothing shared.

TRL lives in an environment of its own; ``benchmarks/peers/trl_vlm.py`` says how to make it. Without it, and with
``--quick``, the comparison is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from common import Step, Worker, measured, parser_of, race, ratio, save
from peers.trl_vlm import COLOURS, SHAPES, WORDS, memory, question, worth
from torch import Tensor

HERE = Path(__file__).parent
SIZES = (64, 224)
PROMPTS, COMPLETIONS, TOKENS = len(COLOURS), 8, 32
REQUIRED = {
    "gradient_relative_error": "<= 1e-5",
    "prefix_sharing_speedup_64": "> 1",
    "prefix_sharing_speedup_224": "> 1",
    "vs_trl_64": ">= 2.5",
    "vs_trl_224": ">= 7",
    "memory_vs_trl_224": "<= 0.6",
}


# --- the model --------------------------------------------------------------------------------------


def write_model(folder: Path) -> None:
    """A tiny Qwen2-VL and its processor; a word is a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    special = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    vocabulary = ["<pad>", "<eos>", "<unk>", *COLOURS, *SHAPES, *WORDS]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": special})  # type: ignore[dict-item]
    sizes: dict[str, Any] = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2}
    sizes["size"] = {"shortest_edge": 32 * 32, "longest_edge": 512 * 512}
    template = (
        "{% for m in messages %}{{ m['role'] }} : {% if m['content'] is string %}{{ m['content'] }}{% else %}"
        "{% for b in m['content'] %}{% if b['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|> "
        "{% else %}{{ b['text'] }}{% endif %}{% endfor %}{% endif %} {% endfor %}"
        "{% if add_generation_prompt %}assistant : {% endif %}"
    )
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(**sizes), tokenizer, Qwen2VLVideoProcessor(**sizes), chat_template=template
    )
    start, end, image, video = (cast(int, tokenizer.convert_tokens_to_ids(token)) for token in special)
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(
            text_config={
                "vocab_size": len(tokenizer),
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 1024,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
                "bos_token_id": None,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
                "initializer_range": 0.1,
            },
            vision_config={
                "depth": 2,
                "embed_dim": 64,
                "hidden_size": 64,
                "num_heads": 4,
                "mlp_ratio": 2,
                "patch_size": 8,
            },
            image_token_id=image,
            video_token_id=video,
            vision_start_token_id=start,
            vision_end_token_id=end,
        )
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


# --- our side ---------------------------------------------------------------------------------------


class Bench:
    """One policy and its learner; ``step`` is one training step as the loop makes it."""

    def __init__(self, folder: Path, size: int) -> None:
        from autotelic.trainers.advantages import grpo
        from autotelic.trainers.learner import Optimisation, PolicyLearner
        from autotelic.trainers.objectives import PPOClip
        from autotelic.vlm.policy import TokenPolicy

        self.policy = TokenPolicy.from_pretrained(folder, horizon=TOKENS)
        self.policy.backbone.banned += tuple(self.policy.renderer.ends)
        self.learner = PolicyLearner(self.policy, PPOClip(), Optimisation(lr=1e-3), advantage=grpo())
        random = np.random.default_rng(0)
        self.images = [random.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(PROMPTS)]
        self.count = 0

    def tasks(self, copies: int = 1) -> list[Any]:
        """The questions under new names, each as often as asked."""
        from autotelic.types import Task

        self.count += 1
        pairs = [(number, copy) for number in range(PROMPTS) for copy in range(copies)]
        return [Task(f"{self.count}.{n}.{c}", question(n), (self.images[n],), category=str(n)) for n, c in pairs]

    def step(self, settings: Mapping[str, Any]) -> dict[str, float]:
        """CPU seconds of a step's parts; settings: share, and keep the prefix's graph."""
        started = time.process_time()
        if settings.get("share", True):
            rollouts = self.policy.act(
                self.tasks(), COMPLETIONS, key=(self.count,), keep_prefix=settings.get("keep", True)
            )
        else:
            rollouts = self.policy.act(self.tasks(COMPLETIONS), 1, key=(self.count,))
        for rollout in rollouts:
            rollout.group = rollout.task.category
            rollout.scores["total"] = worth(rollout.output)
        sampled = time.process_time()
        self.learner.update(rollouts)
        return {"sampling": sampled - started, "update": time.process_time() - sampled}

    def gradient_error(self) -> float:
        """Relative error of the shared gradient of random cotangents against the model's own whole forward pass."""
        from autotelic.types import Evaluation

        policy, model = self.policy, cast(Any, self.policy.module)
        tasks = self.tasks()
        rollouts = policy.act(tasks, COMPLETIONS, key=(0,), keep_prefix=True)
        batch = policy.collate(rollouts)
        weights = torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(0))
        policy.evaluate_actions(batch)
        policy.backward(batch, Evaluation(weights))
        shared = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        processor = cast(Any, policy.renderer).processor
        messages = [
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": t.prompt}]}] for t in tasks
        ]
        text = [
            processor.apply_chat_template(m, add_generation_prompt=True) for m in messages for _ in range(COMPLETIONS)
        ]
        images = [image for image in self.images for _ in range(COMPLETIONS)]
        inputs = processor(text=text, images=images, padding=True, return_tensors="pt")
        tokens = batch.payload["tokens"]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], tokens], 1)
        for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
            inputs[name] = torch.cat([inputs[name], torch.full_like(tokens, value)], 1)
        logits = model(**inputs, use_cache=False).logits[:, -TOKENS - 1 : -1]
        logits = logits.index_fill(-1, torch.tensor(policy.backbone.banned), -torch.inf)
        log_probs: Tensor = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
        (log_probs * weights).sum().backward()
        whole = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        off = sum(float(((a - b) ** 2).sum()) for a, b in zip(shared, whole, strict=True))
        return float((off / sum(float((b**2).sum()) for b in whole)) ** 0.5)


# --- who is compared --------------------------------------------------------------------------------


def timed(bench: Bench, settings: Mapping[str, Any]) -> dict[str, float]:
    """What a step cost; "peak" is in bytes."""
    return measured(bench.step, settings) | {"peak": memory("VmHWM")}


def serve(bench: Bench) -> None:
    """Answer every line of stdin by what a step cost."""
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(timed(bench, json.loads(line))), flush=True)


def compared(folder: Path, size: int, options: argparse.Namespace, trl: bool) -> dict[str, list[dict[str, float]]]:
    """Costs of a size's contestants, each in a process of its own; with ``--quick`` all in this one."""
    if options.quick:
        bench = Bench(folder, size)
        here = {"ours": lambda: timed(bench, {}), "ours, not sharing": lambda: timed(bench, {"share": False})}
        return race(here, options.rounds, warm=1)
    ours = [sys.executable, __file__, "--worker", str(folder), "--size", str(size)]
    workers = {name: Worker(ours) for name in ("ours", "ours, not sharing")}
    runners: dict[str, Step] = {
        "ours": lambda: workers["ours"].step({}),
        "ours, not sharing": lambda: workers["ours, not sharing"].step({"share": False}),
    }
    if trl:
        script = [str(options.trl_python), str(HERE / "peers" / "trl_vlm.py"), f"--model={folder}", f"--size={size}"]
        workers["trl"] = Worker([*script, f"--completions={COMPLETIONS}", f"--tokens={TOKENS}"])
        runners["trl"] = lambda: workers["trl"].step({})
    costs = race(runners, options.rounds, warm=2)
    for worker in workers.values():
        worker.close()
    return costs


# --- the figures ------------------------------------------------------------------------------------


def figures_of(costs: Mapping[int, Mapping[str, list[dict[str, float]]]]) -> tuple[dict[str, float], dict[str, Any]]:
    """The figures, and their intervals."""
    intervals: dict[str, Any] = {}
    for size, rows in costs.items():
        for name, above in ((f"prefix_sharing_speedup_{size}", "ours, not sharing"), (f"vs_trl_{size}", "trl")):
            if above in rows:
                intervals[name] = {unit: ratio(rows[above], rows["ours"], unit) for unit in ("cpu", "wall")}
    figures = {name: units["cpu"]["median"] for name, units in intervals.items()}
    for size, rows in costs.items():
        if "trl" in rows:
            figures[f"memory_vs_trl_{size}"] = round(rows["ours"][-1]["peak"] / rows["trl"][-1]["peak"], 3)
    return figures, intervals


def main() -> None:
    parser = parser_of(__doc__, "two rounds, without TRL")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--trl-python", type=Path, default=HERE / ".trl116" / "bin" / "python")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)  # what our own side is started with
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.worker:
        serve(Bench(options.worker, options.size))
        return
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.environ["OMP_NUM_THREADS"] = "1"
    trl = not options.quick and options.trl_python.exists()
    options.rounds = 2 if options.quick else options.rounds
    if not trl:
        print(f"without TRL ({'--quick' if options.quick else f'no {options.trl_python}'})", file=sys.stderr)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder)
        benches = {size: Bench(folder, size) for size in SIZES}
        errors = {size: bench.gradient_error() for size, bench in benches.items()}
        parameters = sum(p.numel() for p in benches[SIZES[0]].policy.parameters())
        lengths = {size: len(b.policy.renderer.prompts(b.tasks())[0].ids) for size, b in benches.items()}
        costs = {size: compared(folder, size, options, trl) for size in SIZES}
    figures, intervals = figures_of(costs)
    figures["gradient_relative_error"] = max(errors.values())
    result = {name: figures.get(name) for name in REQUIRED} | {
        "further": {name: value for name, value in figures.items() if name not in REQUIRED},
        "required": REQUIRED,
        "intervals": intervals,
        "gradient_relative_errors": errors,
        "seconds": costs,
        "setting": {
            "prompts": PROMPTS,
            "completions": COMPLETIONS,
            "tokens": TOKENS,
            "parameters": parameters,
            "prompt_tokens": lengths,
        },
        "with_trl": trl,
    }
    print(json.dumps(figures, indent=1))
    save(options, result)


if __name__ == "__main__":
    main()
