"""Robots: passes of a vision-language-action model per decision, memory of a piece, and what OpenVLA-7B takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from autotelic.config_files import as_words, read_config
from autotelic.envs.simulator import View
from autotelic.options import parse, run_options
from autotelic.testing.held import Held
from autotelic.testing.published import openvla_7b
from autotelic.testing.vlms import tokenizer, vlm
from autotelic.trainers.lora import add_lora
from autotelic.types import Task
from autotelic.vla.chunk_policy import Seen
from autotelic.vla.memory import action_model_plan
from autotelic.vla.openvla import OpenVLAPolicy
from autotelic.vla.prismatic import PrismaticProcessor
from autotelic.vla.recipes import evolve_vla

CONFIG = Path(__file__).parents[2] / "configs" / "openvla-7b-metaworld-80gb.yaml"
GIB = 2**30
TOKENS = 7
"""Of OpenVLA's actions."""


def figures(quick: bool) -> dict[str, Any]:
    """Each figure beside what it was, or has to be."""
    rows = openvla_config().micro_batch_rows
    return {
        "openvla_forwards": {
            "token after token": len(passes("autoregressive", 64)),
            "parallel": len(passes("parallel", 64)),
            "before": 64 * TOKENS,
            "required": 8,
        },
        "vla_piece_bytes": {
            **{f"{chunks} chunks": piece_bytes(chunks) for chunks in ((8, 32) if quick else (8, 32, 128))},
            "episodes as a whole": {f"{chunks} chunks": piece_bytes(chunks, 10**6) for chunks in (8, 32)},
        },
        "openvla_fork": {"share of the weights that a fork shares": shared_by_forks(), "before": 0},
        "openvla_plan_gib": {
            **({} if quick else {name: value / GIB for name, value in planned().items()}),
            "rows learned at once": rows,
            "required": 70,
        },
    }


def told(count: int) -> Seen:
    frames = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    words = ("left", "red circle", "what is in the picture", "blue")
    return Seen([words[i % 4] for i in range(count)], torch.zeros(count, 0), {"main": frames})


def tiny(**options: Any) -> OpenVLAPolicy:
    model, processor = vlm("openvla")
    return OpenVLAPolicy(model, processor, bins=8, view=View(32), **options)


def passes(decoding: Any, robots: int) -> list[int]:
    """The rows of every pass of the language model for one decision of so many robots with four instructions."""
    policy, rows = tiny(chunk=1, action_size=TOKENS, decoding=decoding), []
    model: Any = policy.module
    model.get_decoder().register_forward_hook(lambda *told: rows.append(len(told[-1][0])))
    policy.choose(told(robots), [torch.Generator().manual_seed(row) for row in range(robots)])
    return rows


def piece_bytes(chunks: int, rows: int = 8) -> int:
    """The most that autograd holds while an episode of so many chunks is learned from, ``rows`` at a time."""
    policy = tiny(chunk=2, action_size=2, micro_batch_rows=rows)
    seen = told(chunks)
    choice = policy.choose(seen, [torch.Generator().manual_seed(row) for row in range(chunks)])
    assert choice.log_probs is not None
    batch = policy.collate([policy.rollout(Task("t", "left"), None, seen, choice.stored, choice.log_probs.flatten())])
    with Held(policy.module) as held:
        policy.backward(batch, policy.evaluate_actions(batch))
    return held.most


def shared_by_forks() -> float:
    """Of the weights that are not adapters."""
    policy = tiny(chunk=1, action_size=TOKENS)
    add_lora(policy.module, 2)
    mine, theirs = (each.module.state_dict(keep_vars=True) for each in (policy, policy.fork("start")))
    frozen = {name: weight for name, weight in mine.items() if "lora_" not in name}
    shared = sum(weight.numel() for name, weight in frozen.items() if theirs[name] is weight)
    return shared / sum(weight.numel() for weight in frozen.values())


def openvla_config() -> Any:
    """The config that ships, as a run reads it."""
    plain = evolve_vla.Config()
    return parse(run_options(plain), as_words(read_config(str(CONFIG)), plain), "run vla/evolve_vla").config


def planned(layers: Sequence[int] = (2, 4), **changes: Any) -> dict[str, float]:
    """Bytes of OpenVLA-7B by the config that ships; counted at two depths, in which all of them are linear."""
    config = openvla_config()
    found = []
    for depth in layers:
        model = openvla_7b(depth, config.lora_rank)
        options = {name: getattr(config, name) for name in ("decoding", "sample_rows", "micro_batch_rows", "chunk")}
        options |= {"gradient_checkpointing": config.gradient_checkpointing, "action_size": 4}
        policy = OpenVLAPolicy(model, PrismaticProcessor.for_model(model, tokenizer()), **(options | changes))
        ids = torch.full((1, 256 + 32), 5)
        ids[:, 1:257] = model.config.image_token_id
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.zeros(1, 6, 224, 224)}
        found.append(action_model_plan(policy, inputs, dtype=torch.bfloat16))
    first, second = found
    steps = (32 - layers[0]) / (layers[1] - layers[0])
    return {name: first[name] + steps * (second[name] - first[name]) for name in first}
