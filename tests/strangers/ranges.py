"""Options out of their range end in one line before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

from autotelic.errors import UsageError
from autotelic.options import AuditOptions, CheckOptions, EvalOptions, RecordOptions, parse, run_options
from autotelic.recipes import all_recipes
from autotelic.trainers.config import fixed, flag

from .cases import Gives, Refuses, autotelic, case

ranges = partial(case, kind="numbers", entry="command line", by="user")
MODALITY = {"vlm": "vlm/grpo", "vla": "vla/evolve_vla", "diffusion": "diffusion/ddpo"}
SHARED: dict[str, tuple[str, ...]] = {
    "temperature": ("nan", "inf", "0", "-1"),
    "tasks_per_step": ("0", "-1"),
    "group_size": ("0", "-3"),
    "max_steps": ("-1",),
    "lr": ("nan", "inf", "-1e-4"),
    "weight_decay": ("nan", "-0.1"),
    "max_grad_norm": ("nan", "0", "-1"),
    "epochs": ("0", "-2"),
    "minibatches": ("0",),
    "batch_size": ("0",),
    "clip_low": ("nan", "-0.2", "1.5"),
    "clip_high": ("nan", "-0.2"),
    "std_floor": ("nan", "-1"),
    "kl_coef": ("nan", "inf", "-0.1"),
    "entropy_coef": ("nan", "inf"),
    "sft_coef": ("nan", "-1"),
    "sft_batch_size": ("0",),
    "gate_every": ("0", "-1"),
    "gate_margin": ("nan", "-0.1"),
    "gate_z": ("nan", "-3"),
    "gate_patience": ("0",),
    "quarantine": ("-1",),
    "eval_every": ("-1",),
    "eval_episodes": ("0", "-1"),
    "eval_offset": ("-1",),
    "save_every": ("0",),
    "keep_last": ("0",),
    "max_hours": ("nan", "-1"),
}
OWN: dict[str, dict[str, tuple[str, ...]]] = {
    "vlm": {
        "max_new_tokens": ("0", "-1"),
        "sample_tokens": ("0",),
        "micro_batch_tokens": ("0", "-1"),
        "lora_rank": ("-1",),
        "lora_alpha": ("nan", "-2"),
        "turns": ("0",),
        "gate_labels": ("-1",),
        "samples": ("-1",),
        "demonstrations": ("-1",),
    },
    "vla": {
        "micro_batch_rows": ("0",),
        "frame_size": ("0", "-64"),
        "chunk": ("-1",),
        "max_episode_steps": ("-1",),
        "rho": ("nan", "1", "-2"),
        "bc_steps": ("-1",),
        "settle": ("-1",),
        "workers": ("-2",),
        "videos": ("-1",),
        "gate_states": ("0",),
        "milestone_interval": ("-1",),
        "check_interval": ("-1",),
        "threshold": ("nan",),
    },
    "diffusion": {
        "sample_rows": ("0",),
        "micro_batch_rows": ("0", "-1"),
        "num_inference_steps": ("0", "-5"),
        "guidance_scale": ("nan", "inf", "-1"),
        "eta": ("nan", "inf", "-1"),
        "noise_level": ("nan", "inf", "-0.7"),
        "lora_rank": ("-1",),
        "ema": ("nan", "1", "-0.1"),
        "grid": ("-1",),
        "gate_pictures": ("0",),
    },
}

FIXED = {("diffusion", "temperature"), ("diffusion", "entropy_coef")}
"""Fields that a modality's methods leave no flag for."""


def said(recipe: str, name: str, value: str) -> object:
    config = all_recipes()[recipe].load().Config
    assert name in {each.name for each in fields(config)} - fixed(config), name
    return parse(run_options(config()), [flag(name), value], f"run {recipe}").config


for modality, recipe in MODALITY.items():
    for name, values in (SHARED | OWN[modality]).items():
        for value in values if (modality, name) not in FIXED else ():
            ranges(
                f"vlm A23: {flag(name)} {value} of {recipe}",
                modality=modality,
                required=Refuses(f"{flag(name)} "),
            )(lambda folder, recipe=recipe, name=name, value=value: said(recipe, name, value))


@ranges("vlm A23: every number of every recipe has a range", modality="core", required=Gives([]))
def every_number(folder: Path) -> object:
    open_ended = []
    for name, recipe in all_recipes().items():
        config = recipe.load().Config
        for each in fields(config):
            if each.name in fixed(config):
                continue
            kind = str(get_type_hints(config)[each.name])
            if "int" not in kind and "float" not in kind:
                continue
            try:
                config(**{each.name: math.nan if "float" in kind else -(10**9)})
                open_ended.append(f"{name} {flag(each.name)}")
            except UsageError:
                pass
    return open_ended


COMMANDS: dict[str, tuple[Any, list[str]]] = {
    "eval RUN --episodes 0": (EvalOptions, ["RUN", "--episodes", "0"]),
    "eval RUN --offset -1": (EvalOptions, ["RUN", "--offset", "-1"]),
    "audit RUN --count 0": (AuditOptions, ["RUN", "--count", "0"]),
    "record RUN TO --episodes 0": (RecordOptions, ["RUN", "TO", "--episodes", "0"]),
    "record RUN TO --frames -1": (RecordOptions, ["RUN", "TO", "--frames", "-1"]),
    "record RUN TO --fps -1": (RecordOptions, ["RUN", "TO", "--fps", "-1"]),
    "check FILE --chunk 0": (CheckOptions, ["FILE", "--chunk", "0"]),
}
for line, (kind, words) in COMMANDS.items():
    ranges(f"vlm A23: autotelic {line}", modality="core", required=Refuses(words[-2]))(
        lambda folder, kind=kind, words=words: parse(kind, words, "x")
    )


@ranges(
    "vlm A23: --temperature nan ends before a folder is made",
    modality="vlm",
    required=Refuses("--temperature"),
    slow=True,
)
def nothing_loaded(folder: Path) -> object:
    try:
        return autotelic("run", "vlm/grpo", "--temperature", "nan", "--output-dir", "run", folder=folder)
    finally:
        assert not (folder / "run").exists(), "something was made"
