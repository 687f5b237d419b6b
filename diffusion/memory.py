"""What training a denoiser will take, said before the first step rather than by the allocator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..trainers.peak import GIB, peak_bytes
from .pipelines import PipelineAdapter


@dataclass(frozen=True)
class Plan:
    """An estimate in bytes; ``print`` shows it.

    Attributes:
        parameters, trainable: counts of the denoiser's weights.
        weights: of the pipeline, as far as they stay on the device. gradients, optimiser: of AdamW. copies: of the
            trained weights, as the start's.
        phases: what comes on top of these while a phase lasts: encoding prompts, drawing, decoding, learning.
    """

    parameters: int
    trainable: int
    weights: int
    gradients: int
    optimiser: int
    copies: int
    phases: Mapping[str, int]

    @property
    def always(self) -> int:
        """What there is whatever is done."""
        return self.weights + self.gradients + self.optimiser + self.copies

    @property
    def total(self) -> int:
        """What there is always, and the largest phase."""
        return self.always + max(self.phases.values())

    def __str__(self) -> str:
        unit, size = ("GiB", GIB) if self.total >= GIB else ("MiB", 2**20)
        parts = {"weights": self.weights, "gradients": self.gradients, "optimiser": self.optimiser}
        parts["copies"] = self.copies
        always, sometimes = (
            ", ".join(f"{name} {value / size:.2f}" for name, value in each.items()) for each in (parts, self.phases)
        )
        share = f"{self.trainable:,} of {self.parameters:,} parameters trained"
        return f"about {self.total / size:.2f} {unit}: {always}; and the most of {sometimes}; {share}"


def memory_plan(
    adapter: PipelineAdapter,
    *,
    drawn: int,
    learned: int,
    steps: int,
    guided: bool = False,
    decoded: bool = False,
    dtype: torch.dtype | None = None,
    forks: int = 0,
    texts: int | None = None,
) -> Plan:
    """Estimate what training takes on the adapter's device.

    Activations are counted, not guessed: denoiser and decoder run on fake tensors, see ``trainers.peak``.

    Args:
        drawn: pictures drawn at once; learned: calls of the denoiser whose graph is held at once.
        steps: of a chain.
        guided: classifier-free guidance, two rows per call.
        decoded: the gradient passes through the decoder, too (reward gradients).
        dtype: of autocast; None computes in the weights' own.
        forks: copies of the trained weights that live as long as the run.
        texts: bytes of the text encoders, where the pipeline stands without them.

    Raises:
        ValueError: a count below 1.
    """
    if min(drawn, learned, steps) < 1:
        raise ValueError(f"drawn {drawn}, learned {learned}, steps {steps}: each is 1 or more")
    trained = [p for p in adapter.denoiser.parameters() if p.requires_grad]
    encoders = {id(part) for part in adapter.text_encoders}
    parts = [part for part in adapter.pipeline.components.values() if isinstance(part, nn.Module)]
    if texts is None:
        texts = sum(_size_of(part) for part in parts if id(part) in encoders)
    rows = 2 if guided and not adapter.distilled else 1
    few = min(drawn, adapter.decoded_at_once)
    chain = drawn * 4 * math.prod(adapter.latent_shape) * 2 * (steps + 1)  # states and noise, in float32
    phases = {
        "encoding": texts * adapter.offloads,
        "drawing": chain + denoiser_peak(adapter, rows * drawn, dtype, graph=False),
        "decoding": chain + decoder_peak(adapter, few, dtype, graph=False),
        "learning": denoiser_peak(adapter, rows * learned, dtype),
    }
    if decoded:
        phases["decoding with gradient"] = decoder_peak(adapter, few, dtype)
    return Plan(
        parameters=sum(p.numel() for p in adapter.denoiser.parameters()),
        trainable=sum(p.numel() for p in trained),
        weights=sum(_size_of(part) for part in parts if id(part) not in encoders) + texts * (not adapter.offloads),
        gradients=sum(map(_bytes, trained)),
        optimiser=2 * sum(map(_bytes, trained)),
        copies=forks * sum(map(_bytes, trained)),
        phases=phases,
    )


def denoiser_peak(adapter: PipelineAdapter, rows: int, dtype: torch.dtype | None = None, *, graph: bool = True) -> int:
    """The most bytes alive in a call of the denoiser on so many rows, and in its backward pass where it has a graph."""
    condition = adapter.blank()

    def call() -> Tensor:
        latents = torch.empty(rows, *adapter.latent_shape, device=adapter.device, requires_grad=graph)
        told = {name: torch.cat([row] * rows) for name, row in condition.items()}
        timestep = torch.zeros(rows, device=adapter.device)
        with torch.set_grad_enabled(graph):
            return adapter.predict(adapter.denoiser, latents, timestep, told)

    return peak_bytes(adapter.denoiser, call, dtype)


def decoder_peak(
    adapter: PipelineAdapter, pictures: int, dtype: torch.dtype | None = None, *, graph: bool = True
) -> int:
    """The same of decoding so many pictures."""

    def call() -> Tensor:
        latents = torch.empty(pictures, *adapter.latent_shape, device=adapter.device, requires_grad=graph)
        with torch.set_grad_enabled(graph):
            return adapter.decode(latents)

    vae = adapter.pipeline.components.get("vae")  # none where latents are pixels
    return peak_bytes(vae or nn.Identity(), call, dtype)


def _size_of(part: nn.Module) -> int:
    return sum(map(_bytes, (*part.parameters(), *part.buffers())))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
