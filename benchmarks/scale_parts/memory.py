"""Memory of models that speak: what the shipped config takes for a published 7B, and the gradient of a tiny one."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

SIZES = {"hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4, "intermediate_size": 18944}
SIZES |= {"num_hidden_layers": 28, "vocab_size": 152064, "tie_word_embeddings": False}
"""Of Qwen2.5-VL-7B's language model, as published."""


def _published(folder: Path, layers: int) -> str:
    """A folder with Qwen2.5-VL-7B's config, in so many of its layers and as much smaller a vocabulary."""
    from transformers import Qwen2_5_VLConfig

    rope = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}
    text = {**SIZES, "num_hidden_layers": layers, "vocab_size": SIZES["vocab_size"] * layers // 28}
    text |= {"rope_parameters": rope, "bos_token_id": 0, "eos_token_id": 0}
    vision = {"depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420, "out_hidden_size": 3584}
    Qwen2_5_VLConfig(text_config=text, vision_config=vision, dtype="bfloat16").save_pretrained(folder)
    return str(folder)


def figures(quick: bool) -> dict[str, Any]:
    """Peaks, operations and gradients; quick ones leave out the plan of the whole 7B."""
    import torch

    from autotelic.trainers.peak import GIB
    from autotelic.vlm.plan import Planner, Shape
    from autotelic.vlm.recipes import grpo

    found: dict[str, Any] = {"gradient_difference": _gradient_difference()}
    asked = {"tasks_per_step": 24, "group_size": 16, "max_new_tokens": 256, "dtype": "bf16", "memory_gb": 74.0}
    asked |= {"sample_tokens": 128000, "micro_batch_tokens": 21500, "gradient_checkpointing": 0.75}
    with tempfile.TemporaryDirectory() as folder:
        config = grpo.Config(model=_published(Path(folder), 4 if quick else 28), **asked).resolved(False)
        counts = [
            Planner(replace(config, gradient_checkpointing=share), config.model, torch.bfloat16).operations(
                Shape(4, 1200, 16, 256)
            )
            for share in (0.0, config.gradient_checkpointing)
        ]
        found["recomputed_operations"] = {"over_plain": counts[1] / counts[0], "required": 1.4}
        if not quick:
            plan = Planner(config, config.model, torch.bfloat16).plan(int(74e9))
            found["vlm_plan_gib"] = {
                "peak": plan.total / GIB,
                "required": 70.0,
                "rows_sampled_together": plan.sampled.rows,
                "tokens_a_learning_piece": plan.learned.tokens,
                "before": {"sampling": 180.0, "learning": 780.0},
            }
    return found


def _gradient_difference() -> float:
    """Of a tiny Qwen2.5-VL: chunks, recomputed layers and pieces against all at once, over the largest gradient."""
    import torch

    from autotelic.testing import vlms
    from autotelic.trainers.learner import backpropagate
    from autotelic.trainers.objectives import Entropy, WeightedImitation
    from autotelic.types import Task
    from autotelic.vlm import token_scores
    from autotelic.vlm.policy import TokenPolicy

    tasks, gradients, chunk = [Task("a", "what is red ?"), Task("b", "how many circle ?")], [], token_scores.CHUNK_BYTES
    for share, tokens, size in ((0.0, 2**16, chunk), (0.5, 40, 512), (1.0, 40, 512)):
        policy = TokenPolicy.of(
            *vlms.vlm("qwen2_5_vl"), horizon=9, gradient_checkpointing=share, micro_batch_tokens=tokens
        )
        batch = policy.collate(policy.act(tasks, 4, key=(3,)))
        batch.advantages = torch.linspace(-1, 1, len(batch))[:, None].expand(batch.mask.shape)
        token_scores.CHUNK_BYTES = size
        try:
            backpropagate(policy, WeightedImitation() - 0.1 * Entropy(), batch)
        finally:
            token_scores.CHUNK_BYTES = chunk
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    whole = gradients[0]
    return max(float((each - whole).abs().max() / whole.abs().max()) for each in gradients[1:])
