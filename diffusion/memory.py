"""What training a denoiser will take, said before the first step rather than by the allocator."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import Tensor, nn

from .pipelines import PipelineAdapter

TEXT = "word " * 64
"""Of what length a prompt is taken to be, where its length matters."""


@dataclass(frozen=True)
class Plan:
    """An estimate in bytes; ``print`` shows it.

    Attributes:
        parameters, trainable: counts of the denoiser's weights.
        weights: of the whole pipeline. gradients, optimiser: of AdamW. copies: of the trained weights, as the start's.
        activations: what backward needs, kept at once. latents: the chains' states, in float32.
    """

    parameters: int
    trainable: int
    weights: int
    gradients: int
    optimiser: int
    copies: int
    activations: int
    latents: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimiser + self.copies + self.activations + self.latents

    def __str__(self) -> str:
        unit, size = ("GiB", 2**30) if self.total >= 2**30 else ("MiB", 2**20)
        parts = ("weights", "gradients", "optimiser", "copies", "activations", "latents")
        sizes = ", ".join(f"{name} {getattr(self, name) / size:.2f}" for name in parts)
        share = f"{self.trainable:,} of {self.parameters:,} parameters trained"
        return f"about {self.total / size:.2f} {unit}: {sizes}; {share}"


def memory_plan(
    adapter: PipelineAdapter,
    *,
    batch: int,
    steps: int,
    grad_steps: int | None = None,
    checkpointing: bool = True,
    guided: bool = False,
    decoded: bool = False,
    dtype: torch.dtype | None = None,
    forks: int = 0,
) -> Plan:
    """Estimate what training takes on the adapter's device.

    Activations are counted, not guessed: the denoiser runs on fake tensors (shapes without data, so that any size of
    model takes seconds and no memory), and every storage that autograd saves is summed. Two batch sizes tell
    what grows with the batch. Not counted: what the allocator and the kernels keep for themselves, and tensors
    that live only during a call.

    Args:
        batch: pictures trained at once; steps: of their chains.
        grad_steps: steps with gradient; None takes all.
        checkpointing: steps are recomputed one by one in backward, and one step's activations are kept at once.
        guided: classifier-free guidance, two rows per picture.
        decoded: the gradient passes through the decoder, too (reward gradients).
        dtype: of autocast; None computes in the weights' own.
        forks: copies of the trained weights that live as long as the run.

    Raises:
        ValueError: a count below 1, or more steps with gradient than steps.
    """
    held = steps if grad_steps is None else grad_steps
    if batch < 1 or not 1 <= held <= steps:
        raise ValueError(f"batch {batch}, steps {steps}, grad_steps {held}: each at least 1, grad_steps at most steps")
    trained = [p for p in adapter.denoiser.parameters() if p.requires_grad]
    parts = [part for part in adapter.pipeline.components.values() if isinstance(part, nn.Module)]
    fixed, per_row = denoiser_activations(adapter, dtype)
    rows = batch * (2 if guided and not adapter.distilled else 1)
    activations = (fixed + rows * per_row) * (1 if checkpointing else held)
    if decoded:
        fixed, per_row = decoder_activations(adapter, dtype)
        # the decoder's are gone when a checkpointed step is recomputed
        more = fixed + batch * per_row
        activations = max(activations, more) if checkpointing else activations + more
    return Plan(
        parameters=sum(p.numel() for p in adapter.denoiser.parameters()),
        trainable=sum(p.numel() for p in trained),
        weights=sum(_bytes(p) for part in parts for p in (*part.parameters(), *part.buffers())),
        gradients=sum(map(_bytes, trained)),
        optimiser=2 * sum(map(_bytes, trained)),
        copies=forks * sum(map(_bytes, trained)),
        activations=activations,
        latents=4 * batch * (steps + 1) * math.prod(adapter.latent_shape),
    )


def denoiser_activations(adapter: PipelineAdapter, dtype: torch.dtype | None = None) -> tuple[int, int]:
    """Bytes that one call of the denoiser saves for backward: (whatever the batch, per row)."""
    condition = adapter.encode([TEXT])
    timestep = torch.zeros(1, device=adapter.device)

    def call(rows: int) -> Tensor:
        latents = torch.empty(rows, *adapter.latent_shape, device=adapter.device, requires_grad=True)
        told = {name: torch.cat([row] * rows) for name, row in condition.items()}
        return adapter.predict(adapter.denoiser, latents, timestep.expand(rows), told)

    return _saved_per_row(adapter.denoiser, call, adapter.device, dtype)


def decoder_activations(adapter: PipelineAdapter, dtype: torch.dtype | None = None) -> tuple[int, int]:
    """Bytes that decoding saves for backward: (whatever the batch, per picture)."""

    def call(rows: int) -> Tensor:
        return adapter.decode(torch.empty(rows, *adapter.latent_shape, device=adapter.device, requires_grad=True))

    vae = getattr(adapter.pipeline, "vae", None)  # none where latents are pixels
    return _saved_per_row(vae or nn.Identity(), call, adapter.device, dtype)


def _saved_per_row(
    module: nn.Module, call: Callable[[int], Tensor], device: torch.device, dtype: torch.dtype | None
) -> tuple[int, int]:
    two, three = (_saved(module, call, rows, device, dtype) for rows in (2, 3))
    return max(0, 3 * two - 2 * three), three - two


def _saved(
    module: nn.Module, call: Callable[[int], Tensor], rows: int, device: torch.device, dtype: torch.dtype | None
) -> int:
    """Bytes of the distinct storages that autograd saves during a call on fake tensors, weights left out."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        weights = [*module.parameters(), *module.buffers()]
        weights += [fake.from_tensor(weight) for weight in weights]  # autograd saves some themselves, some as fakes
        mixed = torch.autocast(device.type, dtype, enabled=dtype is not None)
        # Tables that diffusers caches, such as Qwen-Image's rotations, would be fakes from then on.
        uncached = patch.object(torch.compiler, "is_exporting", lambda: True)
        with (
            torch.enable_grad(),
            mixed,
            uncached,
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            out = call(rows)
        own = {_storage(w) for w in weights}
        found = {_storage(t): cast(Any, t).untyped_storage().nbytes() for t in kept}
        del out
    return sum(size for storage, size in found.items() if storage not in own)


def _storage(tensor: Tensor) -> int:
    return int(cast(Any, tensor).untyped_storage()._cdata)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
