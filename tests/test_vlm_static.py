"""Decoding in fixed shapes: what it says is what is said operator by operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from autotelic.errors import UsageError
from autotelic.testing import vlms as tiny
from autotelic.types import Rollout, Task
from autotelic.vlm import static_decoding
from autotelic.vlm.conversation import Conversation, Script
from autotelic.vlm.policy import TokenPolicy
from autotelic.vlm.static_decoding import Bucket, Layout, StaticDecoder, layout_of, length_bucket, row_bucket

FAMILIES = (*tiny.TEXTS, *tiny.VLMS)
PICTURES = [np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8) for seed in range(3)]


def tasks_for(family: str) -> list[Task]:
    """Three questions of unequal lengths and limits."""
    first, second = (tuple(PICTURES[:1]), tuple(PICTURES[1:])) if family in tiny.VLMS else ((), ())
    return [
        Task("short", "what is red ?" * 6, first, horizon=3),
        Task("long", "how many circle in the picture ?" * 5, second),
        Task("longer", "what is left of the green square in the picture ?", first, horizon=40),
    ]


def made(family: str, decoder: Any, lora: bool = False, **options: Any) -> TokenPolicy:
    model, processor = tiny.vlm(family) if family in tiny.VLMS else tiny.text(family)
    policy = TokenPolicy.of(model, processor, horizon=24, decoder=decoder, lora_rank=4 if lora else None, **options)
    if lora:
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in policy.parameters():
                weight.add_(torch.randn(weight.shape, generator=random) * 0.1)
    return policy


def same(found: Sequence[Rollout], wanted: Sequence[Rollout]) -> None:
    assert [r.payload["tokens"].tolist() for r in found] == [r.payload["tokens"].tolist() for r in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one.log_probs is not None and other.log_probs is not None
        torch.testing.assert_close(one.log_probs, other.log_probs, rtol=0, atol=1e-5)


@pytest.fixture
def buckets(monkeypatch: pytest.MonkeyPatch) -> list[Layout]:
    """Every bucket that is entered; they are small, so that many are."""
    entered: list[Layout] = []
    enter = StaticDecoder._enter

    def watched(*given: Any, **named: Any) -> Any:
        found = enter(*given, **named)
        entered.append(found[0].layout)
        return found

    monkeypatch.setattr(StaticDecoder, "_enter", watched)
    monkeypatch.setattr(static_decoding, "ROOM", 8)
    monkeypatch.setattr(static_decoding, "BLOCK", 4)
    return entered


@pytest.mark.parametrize("family", FAMILIES)
def test_fixed_shapes_say_the_same(family: str, buckets: list[Layout]) -> None:
    """Completions on shared prompts, of unequal prompts and lengths; sampled, warm, and the likeliest."""
    static, eager = made(family, "static"), made(family, "eager")
    tasks = tasks_for(family)
    same(static.act(tasks, 5, key=(2,), temperature=1.5), eager.act(tasks, 5, key=(2,), temperature=1.5))
    assert buckets[0].times > 1, "folded at first"
    assert len({layout.slots for layout in buckets}) > 1, "and some leave"
    same(static.act(tasks, 1, greedy=True), eager.act(tasks, 1, greedy=True))
