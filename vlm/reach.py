"""How far a model can read: positions that it has, was made for, or behind which its angles change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Reach:
    """A limit on the tokens of a question and what follows it.

    Attributes:
        tokens: most of them together.
        why: what is behind, in words.
        hard: no number that follows would be right; else the model only reads worse there.
    """

    tokens: int
    why: str
    hard: bool


def reach_of(model: Any) -> Reach | None:
    """The nearest limit of a transformers model, as its configuration and its modules tell; None without one.

    Angles that depend on the length of what is read (longrope, dynamic NTK) change in the middle of an answer when it
    is sampled, and for all of it when it is learned from, so that both are sure to disagree behind the switch.
    """
    config = model.config.get_text_config()
    named = getattr(config, "max_position_embeddings", None)
    made_for = named if isinstance(named, int) and named > 0 else None
    limits = list(_switches(config, made_for))
    if made_for is not None:
        table = any(isinstance(part, nn.Embedding) and _is_table(part, made_for, model) for part in model.modules())
        why = "the model has no positions behind them" if table else "the model was made for no longer texts"
        limits.append(Reach(made_for, why, table))
    hard = [limit for limit in limits if limit.hard]
    return min(hard or limits, key=lambda limit: limit.tokens, default=None)


def _switches(config: Any, made_for: int | None) -> Iterator[Reach]:
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    several = [given, *given.values()] if isinstance(given, Mapping) else []
    for rope in several:
        kind = rope.get("rope_type", rope.get("type")) if isinstance(rope, Mapping) else None
        if kind in ("longrope", "su") or (kind == "dynamic" and not rope.get("alpha")):
            before = rope.get("original_max_position_embeddings") if kind != "dynamic" else None
            before = before or (
                getattr(config, "original_max_position_embeddings", None) if kind != "dynamic" else None
            )
            switch = before or made_for
            if isinstance(switch, int):
                yield Reach(switch, f"the angles of its RoPE ({kind}) change there with the length", True)


def _is_table(part: nn.Embedding, positions: int, model: Any) -> bool:
    """Whether an embedding is that of positions; OPT's has two rows more."""
    return part is not model.get_input_embeddings() and positions <= part.num_embeddings <= positions + 2
