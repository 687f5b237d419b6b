"""Rewards of the world of shapes: does a picture show its caption, where all true pictures are known?

Two families that share nothing but the pictures: a small network that learned the attributes, to be optimised
against, and the nearest true render, which learns nothing and judges. Neither knows how pictures are drawn: the
world hands over its true renders ``templates`` [S, J, 3, H, W] (scenes, ways to draw each, 0..1) and ``labels``, an
ordered mapping from each scene's caption to its attributes' values as places 0, 1, ….
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...cache import cache_folder
from ...errors import UsageError
from ...families import GROUND_TRUTH
from ...fitting import cosine, fit
from .images import as_float, as_uint8

FLOOR = -5.0
"""The least that one attribute contributes to AttributeReward, in nats."""

ROUNDING = 1 / (12 * 255**2)
"""Mean squared error of rounding a value in 0..1 to 8 bits: what fidelity takes a perfect picture's error for."""

Labels = Mapping[str, Sequence[int]]

_ARCHITECTURE = 1  # part of the cache key: raise it when the network or its training changes
_GROUPS = 8
_CHUNK = 256


class AttributeClassifier(nn.Module):
    """A small convolutional network with one head per attribute.

    Channels are normalised in groups: without it the shape, a matter of a few pale pixels, is hardly learned while
    colours and backgrounds are learned at once.

    Args:
        values: how many values each attribute has.
        size: side of the pictures in pixels, 4 times a power of two.
    """

    def __init__(self, values: Sequence[int], size: int, width: int = 16) -> None:
        super().__init__()
        self.values, self.size = tuple(values), size
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.GroupNorm(_GROUPS, width), nn.SiLU()]
        channels, side = width, size
        while side > 4:
            wider = min(2 * channels, 4 * width)
            layers += [nn.Conv2d(channels, wider, 3, stride=2, padding=1), nn.GroupNorm(_GROUPS, wider), nn.SiLU()]
            channels, side = wider, side // 2
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side**2, 8 * width), nn.SiLU())
        self.heads = nn.Linear(8 * width, sum(self.values))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """[B, 3, size, size] in 0..1 -> log-probabilities [B, V] of each attribute's V values."""
        logits = self.heads(self.body(2 * images - 1))
        return tuple(part.log_softmax(-1) for part in logits.split(self.values, -1))


def train_classifier(
    templates: Tensor, labels: Labels, *, seed: int = 0, steps: int = 400, batch: int = 128, lr: float = 3e-3
) -> AttributeClassifier:
    """A classifier that learned from true renders with pixel noise and changes of brightness.

    Noise has a standard deviation of up to 0.15 and brightness shifts by up to 0.05 either way, so that the
    pictures of an unfinished policy are no surprise.

    Args:
        seed: of the initial weights and everything drawn; two seeds give two judges of one family.
        lr: at the start; it falls to zero by a cosine.

    Raises:
        ValueError: another number of captions than of scenes.
    """
    _check_world(templates, len(labels))
    targets = torch.tensor(list(labels.values()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = AttributeClassifier(_values(labels), templates.shape[-1])
    generator = torch.Generator().manual_seed(seed)

    def loss(_: int) -> Tensor:
        scenes = torch.randint(templates.shape[0], (batch,), generator=generator)
        pictures = templates[scenes, torch.randint(templates.shape[1], (batch,), generator=generator)]
        noise = (
            0.15 * torch.rand(batch, 1, 1, 1, generator=generator) * torch.randn(pictures.shape, generator=generator)
        )
        shift = 0.1 * torch.rand(batch, 1, 1, 1, generator=generator) - 0.05
        log_probs = classifier((pictures + noise + shift).clamp(0, 1))
        return -_picked(log_probs, targets[scenes]).sum(1).mean()

    fit(classifier, loss, cosine(lr, steps), told="fitting the classifier of attributes, once")
    return classifier.eval().requires_grad_(False)


def attribute_classifier(templates: Tensor, labels: Labels, *, seed: int = 0) -> AttributeClassifier:
    """The classifier of :func:`train_classifier`, trained at its first use and read from the cache afterwards.

    Training takes about 9 CPU seconds at 16 pixels and 29 at 32 on one core. Trained on 20 of 27 ways to draw each
    scene, it found every value on the other 7 at 16 pixels (two seeds), and 99.9 % of shapes at 32 (one seed).

    The name of its file in :func:`~..cache.cache_folder` holds size, seed and a hash of the world, so that another
    world never meets these weights.

    Raises:
        UsageError: the kept file cannot be read.
    """
    _check_world(templates, len(labels))
    digest = hashlib.sha256((templates * 255).round().to(torch.uint8).contiguous().numpy().tobytes())
    digest.update(repr([(caption, tuple(values)) for caption, values in labels.items()]).encode())
    name = f"attributes-v{_ARCHITECTURE}-{templates.shape[-1]}px-seed{seed}-{digest.hexdigest()[:12]}.safetensors"
    path = cache_folder() / name
    if not path.exists():
        classifier = train_classifier(templates, labels, seed=seed)
        partial = path.with_name(f"{name}.{os.getpid()}.partial")
        save_file(classifier.state_dict(), partial)
        os.replace(partial, path)
        return classifier
    classifier = AttributeClassifier(_values(labels), templates.shape[-1])
    try:
        classifier.load_state_dict(load_file(path))
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise UsageError(f"{path} holds no weights of this classifier: delete it, and it is trained again") from error
    return classifier.eval().requires_grad_(False)


class AttributeReward:
    """How probable the caption's attributes look: the sum over attributes of max(log p, FLOOR), at most 0.

    The floor keeps one hopeless attribute from outweighing the others; below it, no gradient flows.

    Args:
        classifier: used on the images' device.
        labels: caption -> the value of each attribute.
        differentiable: score float images and return a tensor [B] with gradient; otherwise images are rounded
            to 8 bits first, as a black box that reads files would see them, and the scores are numbers.

    Raises (when called):
        ValueError: a prompt that is no caption, another number of prompts than of images, or images of a size
            that the classifier does not read.
    """

    name = "attributes"
    families = frozenset({"attribute classifier"})
    reads_labels = "a classifier that learned from true renders of every caption"

    def __init__(self, classifier: AttributeClassifier, labels: Labels, *, differentiable: bool = False) -> None:
        self.classifier, self.labels, self.differentiable = classifier, labels, differentiable
        self._places = {caption: place for place, caption in enumerate(labels)}
        self._targets = torch.tensor(list(labels.values()))
        self.minimum = FLOOR * self._targets.shape[1]

    def __call__(self, outputs: Sequence[Any] | Tensor, prompts: Sequence[Any], **columns: Any) -> Tensor | list[float]:
        targets = self._targets[_places(prompts, self._places, len(outputs))]
        if not self.differentiable:
            with torch.no_grad():
                return [float(value) for value in self._score(_eight_bits(outputs) / 255, targets)]
        return self._score(as_float(outputs).float(), targets)

    def _score(self, images: Tensor, targets: Tensor) -> Tensor:
        side = self.classifier.size
        if tuple(images.shape[-2:]) != (side, side):
            shape = " x ".join(str(n) for n in images.shape[-2:])
            raise ValueError(f"images are {shape} pixels, the attribute classifier reads {side} x {side}")
        log_probs = self.classifier.to(images.device)(images)
        return _picked(log_probs, targets.to(images.device)).clamp(min=FLOOR).sum(1)


class NearestRender:
    """The judge that learns nothing: compares a picture with every true render, pixel by pixel.

    Scores, each of the picture rounded to 8 bits:

    - ``correct``: 1.0 if the nearest of all true renders shows the prompt's scene, else 0.0.
    - ``distance``: mean squared error to the nearest true render of the prompt's own scene, values in 0..1.
    - ``fidelity``: -log(distance + ROUNDING), 13.6 for a perfect picture. Its differences are scale-free: to halve
      the error is worth log 2 wherever one starts and in whatever unit pixels are counted, whereas the mean of the
      distance itself belongs to the few worst pictures. ``correct`` hardly sees noise; these two do.

    Args:
        templates: [S, J, 3, H, W] true renders of S scenes.
        captions: of the S scenes, in that order.
        total: which score is the reward.

    Raises:
        ValueError: another number of captions than of scenes; an unknown total; when called, a prompt that is no
            caption, another number of prompts than of images, or images of another size than the renders.
    """

    name = "nearest_render"
    families = frozenset({GROUND_TRUTH})
    reads_labels = "true renders of every caption"

    def __init__(
        self, templates: Tensor, captions: Sequence[str], *, total: Literal["correct", "fidelity"] = "correct"
    ) -> None:
        _check_world(templates, len(captions))
        if total not in ("correct", "fidelity"):
            raise ValueError(f"total {total!r} is neither 'correct' nor 'fidelity'")
        self.total = total
        self.minimum = 0.0 if total == "correct" else -math.log(1 + ROUNDING)
        self._places = {caption: place for place, caption in enumerate(captions)}
        self._shape = tuple(templates.shape[2:])
        # 8-bit values around zero: products of whole numbers, that float32 adds up (almost) without rounding
        self._renders = (templates.flatten(2) * 255).round() - 128
        self._norms = self._renders.square().sum(-1).flatten()

    def __call__(
        self, outputs: Sequence[Any] | Tensor, prompts: Sequence[Any], **columns: Any
    ) -> dict[str, list[float]]:
        correct, distance = self.verdicts(outputs, prompts)
        fidelity = -(distance + ROUNDING).log()
        scores = {"correct": correct.float(), "fidelity": fidelity, "distance": distance}
        named = {name: [float(value) for value in values] for name, values in scores.items()}
        return named | {"total": named[self.total]}

    def verdicts(self, images: Sequence[Any] | Tensor, prompts: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """(correct [B] bool, distance [B]) of a batch, on the CPU."""
        scenes = _places(prompts, self._places, len(images))
        pixels = _eight_bits(images)
        if tuple(pixels.shape[1:]) != self._shape:
            raise ValueError(f"images have shape {tuple(pixels.shape[1:])}, the true renders {self._shape}")
        nearest, distances = [], []
        for chunk, own in zip(torch.split(pixels.flatten(1) - 128, _CHUNK), torch.split(scenes, _CHUNK), strict=True):
            # |a - b|^2 = |a|^2 - 2ab + |b|^2, of which |a|^2 is the same for every render b
            away = self._norms - 2 * chunk @ self._renders.flatten(0, 1).T
            nearest.append(away.argmin(1) // self._renders.shape[1])
            distances.append((self._renders[own] - chunk[:, None]).square().mean(-1).amin(1) / 255**2)
        return torch.cat(nearest) == scenes, torch.cat(distances)


def per_prompt_diversity(images: Tensor) -> float:
    """How much the pictures of one prompt differ: their standard deviation, over G, averaged over prompts and pixels.

    Divides by G - 1, so that groups of different sizes can be compared.

    Args:
        images: [P, G, 3, H, W] in 0..1, G pictures of each of P prompts.

    Raises:
        ValueError: another shape, or fewer than two pictures per prompt.
    """
    if images.ndim != 5 or images.shape[1] < 2:
        raise ValueError(f"images have shape {tuple(images.shape)}, not [P, G, 3, H, W] with two or more per prompt")
    return float(images.detach().float().std(1).mean())


def _values(labels: Labels) -> list[int]:
    """How many values each attribute has."""
    return [max(column) + 1 for column in zip(*labels.values(), strict=True)]


def _check_world(templates: Tensor, captions: int) -> None:
    if templates.ndim != 5 or templates.shape[0] != captions:
        shape = tuple(templates.shape)
        raise ValueError(f"templates have shape {shape}, not [S, J, 3, H, W] with one scene per caption ({captions})")


def _places(prompts: Sequence[Any], places: Mapping[str, int], images: int) -> Tensor:
    if len(prompts) != images:
        raise ValueError(f"{images} images for {len(prompts)} prompts")
    for sample, prompt in enumerate(prompts):
        if str(prompt) not in places:
            example = next(iter(places))
            raise ValueError(
                f"the prompt of sample {sample}, {prompt!r}, is no caption of this world; one is {example!r}"
            )
    return torch.tensor([places[str(prompt)] for prompt in prompts], dtype=torch.long)


def _eight_bits(images: Sequence[Any] | Tensor) -> Tensor:
    """[B, 3, H, W] whole numbers 0..255, as floats on the CPU."""
    return torch.from_numpy(as_uint8(images)).permute(0, 3, 1, 2).float()


def _picked(log_probs: Sequence[Tensor], targets: Tensor) -> Tensor:
    """[B, A]: of each attribute, the log-probability of the target's value."""
    return torch.stack(
        [lp.gather(1, target[:, None])[:, 0] for lp, target in zip(log_probs, targets.T, strict=True)], 1
    )
