"""Trained weights: what of a network learning changes. It alone is copied by forks and stands in checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError


def trained_names(module: nn.Module) -> frozenset[str]:
    """Names, as in ``state_dict``, of parameters that require gradients and of the buffers that go along with them.

    A buffer (statistics of a normalisation) belongs to the smallest part around it that has parameters, and is trained
    where some of those are. Adapters do not count: what they are added to stays as it is.
    """
    weights = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    saved = module.state_dict(keep_vars=True).keys()
    buffers = [name for name, _ in module.named_buffers() if name in saved]
    return frozenset(name for name, trained in weights.items() if trained) | {b for b in buffers if _moves(b, weights)}


def frozen_tensors(module: nn.Module, trained: Mapping[str, Tensor]) -> list[Tensor]:
    """Everything in the module's state but what is trained, under whatever name."""
    own = {id(tensor) for tensor in trained.values()}
    return [tensor for tensor in module.state_dict(keep_vars=True).values() if id(tensor) not in own]


def move(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], mix: float = 1.0) -> None:
    """Move weights, in place, a fraction ``mix`` of the way to others of the same names; whole numbers are copied.

    Raises:
        UsageError: names or shapes that differ; nothing has moved then.
    """
    other = "these weights are of another policy"
    if lacking := sorted(mine.keys() - theirs.keys()):
        raise UsageError(f"{other}: they lack {lacking[0]}")
    if more := sorted(theirs.keys() - mine.keys()):
        raise UsageError(f"{other}: {more[0]} has no counterpart")
    for name, tensor in mine.items():
        if tensor.shape != theirs[name].shape:
            raise UsageError(f"{other}: {name} is {list(theirs[name].shape)} there and {list(tensor.shape)} here")
    with torch.no_grad():
        for name, tensor in mine.items():
            if mix == 1.0 or not tensor.is_floating_point():
                tensor.copy_(theirs[name])
            else:
                tensor.lerp_(theirs[name].to(tensor), mix)


def tensors_of(state: Any) -> Iterator[Tensor]:
    """Every tensor of a nested state, in its order."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping | list | tuple):
        for part in state.values() if isinstance(state, Mapping) else state:
            yield from tensors_of(part)


def is_finite(state: Any) -> bool:
    """Whether no tensor of a nested state holds NaN or infinity; a device is waited for once."""
    found: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors_of(state):
        if tensor.is_floating_point():
            found.setdefault(tensor.device, []).append(tensor.isfinite().all())
    return all(bool(torch.stack(several).all()) for several in found.values())


def checksum(state: Any) -> tuple[str, str]:
    """Sum and sum of magnitudes of a nested state's tensors, to the bit; equal states have equal ones."""
    plain = magnitude = 0.0
    for tensor in tensors_of(state):
        exact = tensor.detach().double()
        plain, magnitude = plain + float(exact.sum()), magnitude + float(exact.abs().sum())
    return plain.hex(), magnitude.hex()


def check_trains(module: nn.Module) -> None:
    """Raise UsageError for a network of which nothing would be trained."""
    if any(weight.requires_grad for weight in module.parameters()):
        return
    adapters = sum(".lora_A" in name for name, _ in module.named_parameters())
    what = f"0 of {adapters} adapters train" if adapters else f"no weight of {type(module).__name__} requires gradients"
    raise UsageError(f"{what}, so that nothing could be learned: leave some part of the policy unfrozen")


def is_adapter(name: str) -> bool:
    """Whether a parameter of that name is an adapter's."""
    return ".lora_" in name


def _moves(buffer: str, weights: Mapping[str, bool]) -> bool:
    part = buffer
    while part:
        part = part.rpartition(".")[0]
        around = [on and not is_adapter(name) for name, on in weights.items() if name.startswith(part and f"{part}.")]
        if around:
            return any(around)
    return False
