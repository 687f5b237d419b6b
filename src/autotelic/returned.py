"""What a reward may return, and the lists of scores that are made of it.

Accepted are sequences, arrays and tensors [B] or [B, 1], a mapping of such by name, and DDPO's pair (scores,
information). A score is a number, None or NaN where it does not apply, or the numbers of a rollout's segments.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from .errors import RewardError
from .types import Score

LARGEST = float(np.finfo(np.float32).max)
"""What learning computes with has single precision: beyond it a score is infinite."""


def scores_of(name: str, result: Any, columns: Mapping[str, Any]) -> dict[str, list[Score]]:
    """Lists of scores by name, "total" among them.

    Args:
        name: the reward's.
        columns: what it was called with; ``tasks``, where they are there, are counted and named.

    Raises:
        RewardError: something else, another number of scores than samples, or one that is infinite in single precision;
            with reward and sample.
    """
    if isinstance(result, tuple) and len(result) == 2 and _is_information(*result):
        result = result[0]
    named = dict(result) if isinstance(result, Mapping) else {name: result}
    if not named:
        raise RewardError(f"reward {name} returned an empty mapping")
    tasks = columns.get("tasks")
    ids = None if tasks is None else [task.id for task in tasks]
    found = {str(key): _rows(name if key == "total" else str(key), value, ids) for key, value in named.items()}
    if "total" not in found:
        found["total"] = list(next(iter(found.values())))
    return found


def _is_information(scores: Any, beside: Any) -> bool:
    several = isinstance(scores, Mapping | Sequence | np.ndarray | Tensor) and not isinstance(scores, str)
    return several and (beside is None or isinstance(beside, Mapping))


def _rows(name: str, values: Any, ids: Sequence[str] | None) -> list[Score]:
    if isinstance(values, Tensor | np.ndarray):
        values = _unbound(name, values, ids)
    elif isinstance(values, str | bytes | Mapping | set | frozenset) or not isinstance(values, Iterable):
        raise RewardError(f"reward {name} returned {type(values).__name__}, not a sequence of scores")
    rows = list(values)
    if ids is not None and len(rows) != len(ids):
        scores = "1 score" if len(rows) == 1 else f"{len(rows)} scores"
        raise RewardError(f"reward {name} returned {scores} for {len(ids)} samples")
    return [_score(name, value, ids[row] if ids is not None else str(row)) for row, value in enumerate(rows)]


def _unbound(name: str, values: Any, ids: Sequence[str] | None) -> list[Any]:
    """The rows of an array or tensor of one axis: numbers, unless a gradient hangs on them."""
    if values.ndim == 0:
        samples = "" if ids is None else f" for {len(ids)} samples"
        raise RewardError(f"reward {name} returned one number{samples}: a score of every sample is wanted")
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim > 1:
        shape = ", ".join(str(size) for size in values.shape)
        raise RewardError(
            f"reward {name} returned a matrix [{shape}]: one score of every sample is wanted, such as the diagonal of "
            "similarities; scores of segments are a list with a row of every sample"
        )
    return list(values) if isinstance(values, Tensor) and values.requires_grad else values.tolist()


def _score(name: str, value: Any, sample: str) -> Score:
    if value is None or (isinstance(value, Tensor) and value.requires_grad):
        return value
    if isinstance(value, Tensor | np.ndarray | np.generic):
        value = value.tolist()
    if not isinstance(value, list | tuple) or len(value) == 1:
        number = _number(name, value[0] if isinstance(value, list | tuple) else value, sample)
        return None if math.isnan(number) else number
    numbers = [_number(name, part, sample) for part in value]
    absent = sum(math.isnan(number) for number in numbers)
    if absent and absent == len(numbers):
        return None
    if absent or not numbers:
        what = "nan for some segments" if numbers else "no number"
        raise RewardError(f"reward {name} returned {what}, for sample {sample}")
    return numbers


def _number(name: str, value: Any, sample: str) -> float:
    try:
        number = math.inf if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.inf
    if math.isinf(number) or abs(number) > LARGEST:
        raise RewardError(f"reward {name} returned {' '.join(str(value).split())[:60]} for sample {sample}")
    return number
