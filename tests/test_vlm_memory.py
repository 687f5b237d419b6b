"""Memory of token policies: chunks of the head, recomputed layers, pieces in tokens, and what is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from autotelic.testing import vlms as tiny
from autotelic.trainers.learner import backpropagate
from autotelic.trainers.objectives import Entropy, KLPenalty, WeightedImitation
from autotelic.trainers.policy import Cost, cut
from autotelic.types import Batch, Task
from autotelic.vlm import token_scores
from autotelic.vlm.policy import TokenPolicy

OBJECTIVE = WeightedImitation() + 0.5 * KLPenalty(estimator="exact") - 0.1 * Entropy()
TASKS = [Task("a", "what is red ?", horizon=6), Task("b", "how many circle in the picture ?", horizon=9)]


def made(family: str = "qwen2", **options: Any) -> TokenPolicy:
    model, processor = tiny.vlm(family) if family in tiny.VLMS else tiny.text(family)
    return TokenPolicy.of(model, processor, horizon=9, **options)


def learned(policy: TokenPolicy, batch: Batch) -> tuple[dict[str, Tensor], list[Tensor]]:
    """What is evaluated, and the gradient of an objective with entropy and an exact divergence."""
    reference = {"reference": made().fork("reference")}
    with torch.no_grad():  # away from the reference, so that the divergence has a gradient
        for weight in policy.parameters():
            weight.grad = None
    now = policy.evaluate_actions(batch, OBJECTIVE.needs, reference).tensors()
    backpropagate(policy, OBJECTIVE, batch, reference)
    return now, [weight.grad.clone() for weight in policy.parameters() if weight.grad is not None]


def moved(**options: Any) -> TokenPolicy:
    policy = made(**options)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in policy.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=random)
    return policy


def batch_of(policy: TokenPolicy, n: int = 4) -> Batch:
    rollouts = policy.act(TASKS, n, key=(3,))
    for number, rollout in enumerate(rollouts):
        rollout.scores["total"] = (number * 7 % 11) / 10
    batch = policy.collate(rollouts)
    batch.advantages = torch.ones(batch.mask.shape) * torch.linspace(-1, 1, len(batch))[:, None]
    return batch


def off(one: list[Tensor], other: list[Tensor]) -> float:
    scale = max(float(g.abs().max()) for g in other)
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True)) / scale


@pytest.mark.parametrize("tokens", [2**16, 40])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("chunk", [2**28, 3 * 4 * 30])
def test_chunks_recomputed_layers_and_pieces_give_the_gradient_of_the_whole(
    chunk: int, share: float, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = moved()
    batch = batch_of(policy)
    whole, gradient = learned(policy, batch)
    monkeypatch.setattr(token_scores, "CHUNK_BYTES", chunk)
    other = moved(gradient_checkpointing=share, micro_batch_tokens=tokens)
    now, found = learned(other, batch)
    assert off(found, gradient) < 1e-5 and max(float(g.abs().max()) for g in gradient) > 1e-3
    for name, values in now.items():
        torch.testing.assert_close(values, whole[name], rtol=0, atol=1e-5, msg=name)


def test_the_heads_logits_are_never_held_for_more_tokens_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = made()
    batch = batch_of(policy)
    saved = {}
    head: Any = policy.backbone.output_layer  # type: ignore[attr-defined]
    for chunk in (2**28, 3 * 4 * len(head.weight)):
        monkeypatch.setattr(token_scores, "CHUNK_BYTES", chunk)
        sizes: list[int] = []
        hook = head.register_forward_hook(lambda _, given, __, sizes=sizes: sizes.append(given[0].shape[0]))
        policy.evaluate_actions(batch, {"entropy"})
        hook.remove()
        saved[chunk] = max(sizes)
    whole, chunked = saved.values()
    assert whole == int(batch.mask.sum()) and chunked == 3


@pytest.mark.parametrize(("share", "layers"), [(0.5, 1), (1.0, 2)])
def test_a_share_of_the_layers_runs_again_in_backward(share: float, layers: int) -> None:
    policy = made(gradient_checkpointing=share)
    batch = batch_of(policy)
    calls: list[int] = []
    for place, layer in enumerate(policy.backbone.decoder.layers):  # type: ignore[attr-defined]
        layer.self_attn.register_forward_hook(lambda *_, place=place: calls.append(place))
    now = policy.evaluate_actions(batch)
    before = len(calls)
    policy.backward(batch, now)
    assert len(calls) - before == 2 * layers, "reading prompts and reading on"


def test_the_prefix_is_kept_where_learning_is_one_piece_alone() -> None:
    policy = made()
    assert all(r.graph is not None for r in policy.act(TASKS, 2, keep_prefix=True))
    policy.micro_batch_tokens = 20
    assert all(r.graph is None for r in policy.act(TASKS, 2, keep_prefix=True))


def test_the_kept_prefix_of_recomputed_layers_gives_the_same_gradient() -> None:
    policy, other = made(), made(gradient_checkpointing=1.0)
    gradients = []
    for each, keep in ((policy, False), (other, True)):
        rollouts = each.act(TASKS, 3, key=(5,), keep_prefix=keep)
        assert all((r.graph is not None) == keep for r in rollouts)
        batch = each.collate(rollouts)
        batch.advantages = torch.ones(batch.mask.shape)
        backpropagate(each, WeightedImitation(), batch)
        gradients.append([p.grad for p in each.parameters() if p.grad is not None])
    assert off(gradients[1], gradients[0]) < 1e-5


# --- cutting --------------------------------------------------------------------------------------------------------


def test_parts_hold_what_the_limit_says_and_one_item_at_least() -> None:
    def parts(costs: list[Cost], limit: int, padded: bool = False) -> list[list[int]]:
        return list(cut(enumerate(costs), limit, padded))

    assert parts([Cost(3)] * 5, 7) == [[0, 1], [2, 3], [4]]
    assert parts([Cost(9), Cost(1), Cost(1)], 2) == [[0], [1, 2]]
    assert parts([Cost(1), Cost(5), Cost(1)], 10, padded=True) == [[0, 1], [2]], "three rows as long as the longest"
    shared = [Cost(1, 6, "p"), Cost(1, 6, "p"), Cost(1, 6, "q"), Cost(1, 6, "q")]
    assert parts(shared, 8) == [[0, 1], [2, 3]] and parts(shared, 16) == [[0, 1, 2, 3]]
    assert parts([], 3) == []


def test_samples_of_one_prompt_that_are_too_many_are_drawn_in_parts_and_the_same() -> None:
    policy = made()
    whole = policy.act(TASKS, 5, key=(2,))
    calls: list[int] = []
    read = policy.backbone.read
    policy.backbone.read = lambda prompts: (calls.append(len(prompts)), read(prompts))[1]  # type: ignore[method-assign]
    policy.sample_tokens = 30
    parts = policy.act(TASKS, 5, key=(2,))
    assert len(calls) > 4
    for one, other in zip(whole, parts, strict=True):
        assert one.task.id == other.task.id and torch.equal(one.payload["tokens"], other.payload["tokens"])
