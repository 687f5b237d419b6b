"""Decoding: how much of the cache is moved while rows end, and how many operators a step asks for in each layer."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from autotelic.testing import vlms as tiny
from autotelic.types import Task
from autotelic.vlm import decoding
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


def moved(decoder: str, prompts: int, n: int, longest: int, gone: float = decoding.GONE) -> float:
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
