"""What is computed in, and by which of a device's kernels: settled by every ``start``, before a model is made.

Three things are told apart. Weights that are trained are float32, always: a step of AdamW at a small learning rate is
less than half a unit in the last place of bfloat16 for most weights, and would be lost. Frozen weights, and what is
computed, are of the type that ``--dtype`` names; where that is a half precision, by ``torch.autocast``. And float32
means float32: products and convolutions in TF32, which has ten bits of mantissa and is PyTorch's default for
convolutions, are a type of their own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from ..errors import UsageError
from .config import RunConfig
from .distributed import device

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
HALF = (torch.bfloat16, torch.float16)

SCALE = 2.0**12
"""Of losses in float16."""

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""What cuBLAS reads when it is first used; with ``:4096:8`` its products repeat themselves to the bit."""


def settle(config: RunConfig, small: bool) -> torch.dtype:
    """Set what holds for the device, and say what is computed in.

    TF32 is on for ``--dtype tf32`` alone. cuDNN's attention is never taken: its backward pass crashes at some lengths
    (4,608 tokens, torch 2.11), and the card is lost to the process then. With ``--deterministic`` an operation that
    cannot repeat itself to the bit raises; what PyTorch was told so before stays.

    Args:
        small: whether a small network learns, which "auto" computes in float32 everywhere.

    Raises:
        UsageError: a type that the device does not have.
    """
    if config.deterministic:
        os.environ.setdefault(WORKSPACE, ":4096:8")  # before anything is computed on a card
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)
        # A write of every new tensor, which is for finding programs that read what they never wrote.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    compute = dtype_of(config.dtype, small, device())
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.dtype == "tf32"
    torch.backends.cuda.enable_cudnn_sdp(False)
    return compute


def dtype_of(name: str, small: bool, place: torch.device) -> torch.dtype:
    """The type that a value of ``--dtype`` stands for on a device.

    Raises:
        UsageError: the device does not have it.
    """
    if name == "auto":
        name = "fp32" if small or place.type == "cpu" or _lacks("bf16", place) else "bf16"
    if reason := _lacks(name, place):
        instead = "fp32" if name == "bf16" or _lacks("bf16", place) else "fp32 or bf16"
        raise UsageError(f"--dtype {name}: {reason}: give --dtype {instead}")
    return DTYPES[name]


def _lacks(name: str, place: torch.device) -> str:
    """Why a device cannot compute in a type; empty where it can."""
    if place.type == "cuda":
        card = torch.cuda.get_device_name(place)
        if name == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            return f"this {card} has no bfloat16"
        if name == "tf32" and torch.cuda.get_device_capability(place) < (8, 0):
            return f"this {card} has no TF32"
    elif name == "tf32":
        return f"TF32 is of NVIDIA's cards, and this is the device {place.type}"
    elif name == "fp16" and place.type == "cpu":
        return "float16 does not train on the CPU"
    return ""


def autocast_of(compute: torch.dtype) -> torch.dtype | None:
    """What a policy's ``autocast`` is for a type to compute in: None for float32."""
    return None if compute == torch.float32 else compute


def hold_in_float32(weights: Iterable[nn.Parameter]) -> torch.dtype | None:
    """Make weights that are to be trained float32, in place.

    Returns:
        What they were where that is a half precision, which is computed in from then on; else None.
    """
    was = None
    for weight in weights:
        if weight.dtype in HALF:
            was, weight.data = weight.dtype, weight.data.float()
    return was


@contextmanager
def loss_scaled(weights: Iterable[nn.Parameter], compute: torch.dtype | None) -> Iterator[float]:
    """What cotangents are to be multiplied by while it lasts; gradients of the weights are divided by it again.

    1 but in float16, which knows nothing below 6e-8. A gradient that overflows is not finite, and its step not taken.
    """
    if compute != torch.float16:
        yield 1.0
        return
    hooks = [cast(Any, weight).register_hook(lambda gradient: gradient / SCALE) for weight in weights]
    try:
        yield SCALE
    finally:
        for hook in hooks:
            hook.remove()


def check_float32(weights: Iterable[nn.Parameter], name: str) -> None:
    """Raise UsageError where weights that are to be trained are of a half precision."""
    if half := {weight.dtype for weight in weights} & {*HALF}:
        kind = str(half.pop()).removeprefix("torch.")
        raise UsageError(
            f"{name} trains weights of {kind}, in which small steps are lost: call its hold_in_float32(); it "
            f"computes in {kind} as before"
        )
