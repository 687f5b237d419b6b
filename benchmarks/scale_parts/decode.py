"""Decoding: how much of the cache is moved while rows end, and how many operators a step asks for in each layer."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from autotelic.testing import vlms as tiny
from autotelic.types import Task
from autotelic.vlm import decoding
from autotelic.vlm.decoding import Decoder
from autotelic.vlm.policy import TokenPolicy


class Moved(TorchDispatchMode):
    """Counts bytes of keys and values that the memory's own code picks, joins or copies; new tokens do not count.

    Args:
        like: the last size of keys and values.
    """

    MOVES = ("index_select", "index", "cat", "copy_", "clone")

    def __init__(self, like: int) -> None:
        super().__init__()
        self.like, self.bytes = like, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        if function.overloadpacket.__name__ in self.MOVES and found.shape[-1:] == (self.like,):
            frame: Any = sys._getframe(1)
            while "torch" in frame.f_code.co_filename:
                frame = frame.f_back
            if "autotelic/vlm" in frame.f_code.co_filename and frame.f_code.co_name != "update":
                self.bytes += found.nbytes
        return found


def moved(decoder: Decoder, prompts: int, n: int, longest: int, gone: float = decoding.GONE) -> float:
    """Bytes of keys and values moved while decoding, over those of all rows at the longest.

    Lengths are spread evenly up to the longest.
    """
    model, reader = tiny.text("llama", num_attention_heads=2, num_key_value_heads=2, head_dim=24)
    policy = TokenPolicy.of(model, reader, decoder=decoder)
    policy.renderer.ends = set()
    asked = policy.renderer.prompts([Task(str(row), "how many ? " * 12) for row in range(prompts)])
    random = torch.Generator().manual_seed(0)
    limits = torch.randint(1, longest + 1, (prompts * n,), generator=random)
    limits[0] = longest
    noise = torch.rand(prompts * n, longest, generator=random)
    policy.backbone.shares  # noqa: B018  (its trial reads too)
    before, decoding.GONE = decoding.GONE, gone
    try:
        with policy.inference(), Moved(24) as count:
            policy.sample(asked, n, limits, noise, 1.0)
    finally:
        decoding.GONE = before
    tokens = prompts * n * (len(asked[0].ids) + longest)
    return count.bytes / (tokens * 2 * model.config.num_hidden_layers * 2 * 24 * 4)


VIEWS = ("view", "reshape", "transpose", "permute", "expand", "unsqueeze", "squeeze", "slice", "select", "split", "t")
VIEWS += ("_unsafe_view", "detach", "alias", "unbind", "split_with_sizes", "chunk", "movedim", "unflatten", "flatten")


class Operators(TorchDispatchMode):
    """Counts operators by name, but those that compute nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name not in VIEWS and not (name == "to" and found is args[0]):  # a cast to what it is already is none
            self.counts[name] += 1
        return found


def of_a_step(decoder: Decoder, layers: int) -> Counter[str]:
    """Operators of one token more for 8 completions: Qwen2.5-VL in bfloat16, adapters on every linear layer in float32.

    Weights are random and small; operators do not depend on them.
    """
    model, processor = tiny.vlm("qwen2_5_vl", num_hidden_layers=layers)
    policy = TokenPolicy.of(
        model.to(torch.bfloat16), processor, decoder=decoder, lora_rank=4, freeze_vision=True, autocast=torch.bfloat16
    )
    policy.renderer.ends = set()
    asked = policy.renderer.prompts([Task(str(row), "how many ? " * 12) for row in range(2)])
    policy.backbone.shares  # noqa: B018  (its trial reads too)
    counts = []
    for longest in (4, 5):
        noise = torch.zeros(8, longest)
        with policy.inference(), Operators() as count:
            policy.sample(asked, 4, torch.full((8,), longest), noise, 1.0)
        counts.append(count.counts)
    return counts[1] - counts[0]


def operators_per_layer(decoder: Decoder) -> Counter[str]:
    """What every further layer adds to a step."""
    return of_a_step(decoder, 3) - of_a_step(decoder, 2)


def figures(quick: bool) -> dict[str, Any]:
    """Cache moved over its size (required: at most 4), and operators per layer with LoRA (required: at most 60)."""
    shapes = (8, 8, 128) if quick else (8, 16, 256)
    return {
        "decode_moved": moved("eager", *shapes),
        "decode_moved_static": moved("static", *shapes),
        "decode_moved_at_every_end": moved("eager", *shapes, gone=0.0),
        "decode_operators_per_layer": operators_per_layer("static").total(),
        "decode_operators_per_layer_eager": operators_per_layer("eager").total(),
    }
