"""What a policy says of decided tokens: log-probabilities, entropy, divergences, with the head in chunks of tokens.

Logits of a large vocabulary take more memory than the layers do. A chunk's are dropped once its scores are known, and
computed again in the backward pass, so that what is held at once does not grow with the number of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from .policy import TokenPolicy

CHUNK_BYTES = 2**28
"""Of the logits of a chunk, in float32; backward holds a few times as much for a while."""

Others = Mapping[str, "tuple[TokenPolicy, Tensor]"]
"""Policies to compare with, and their hidden [N, D] of the same tokens."""


def token_scores(
    policy: TokenPolicy, hidden: Tensor, tokens: Tensor, temperature: Tensor, *, entropy: bool, others: Others
) -> dict[str, Tensor]:
    """[N] each, with graph: "log_probs", "entropy" where it is asked for, and "kl:NAME" from each of the others.

    Args:
        hidden: [N, D] that predict the tokens [N].
        temperature: [N, 1] at which they were sampled.
    """
    with torch.no_grad():
        vocabulary = policy.logits(hidden[:1].detach()).shape[-1]
    size = max(1, CHUNK_BYTES // (4 * vocabulary))
    score = partial(_scores, policy, entropy, {name: other for name, (other, _) in others.items()})
    given = (hidden, tokens, temperature, *(theirs for _, theirs in others.values()))
    if len(tokens) <= size:
        return score(*given)
    parts = []
    for chunk in zip(*(torch.split(values, size) for values in given), strict=True):
        parts.append(checkpoint(score, *chunk, use_reentrant=False, preserve_rng_state=False))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _scores(
    policy: TokenPolicy,
    entropy: bool,
    others: Mapping[str, TokenPolicy],
    hidden: Tensor,
    tokens: Tensor,
    temperature: Tensor,
    *theirs: Tensor,
) -> dict[str, Tensor]:
    log_probs = (policy.logits(hidden) / temperature).log_softmax(-1)
    found = {"log_probs": log_probs.gather(-1, tokens[:, None])[:, 0]}
    if entropy:
        found["entropy"] = -(log_probs.exp() * log_probs.clamp(min=-1e4)).sum(-1)
    for (name, other), seen in zip(others.items(), theirs, strict=True):
        with torch.no_grad():
            compared = (other.logits(seen) / temperature).log_softmax(-1)
        gap = (log_probs - compared).masked_fill(log_probs.isneginf(), 0.0)
        found[f"kl:{name}"] = (log_probs.exp() * gap).sum(-1)
    return found
