"""Frames for robot policies: a timm network that looks at them, and shifts that augment them.

The tower is cut where its feature map has the wanted stride, and every channel of the map is read as a point: the mean
position under a softmax over the map ("keypoints", spatial softmax; Levine et al., arXiv 1504.00702, not checked).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..envs.simulator import Quality, View
from ..errors import UsageError, unknown


@dataclass(frozen=True)
class Vision:
    """How a policy looks.

    Attributes:
        name: a timm model that gives feature maps.
        size: side of the frames in pixels.
        stride: of the feature map that is used; later layers are cut off.
        pool: "keypoints" reads where each channel is high (two numbers), "mean" how high it is (one).
        pretrained: start from timm's weights, which are downloaded on first use.
        frozen: the tower is not trained. What it sees of a frame is computed once, when acting, and stored.
        quality, cameras: how frames are taken, see ``View``. Every camera's frames go through the one tower; none is
            the environment's one camera, whatever its name.
    """

    name: str = "test_convnext"
    size: int = 64
    stride: int = 8
    pool: Literal["keypoints", "mean"] = "keypoints"
    pretrained: bool = False
    frozen: bool = False
    quality: Quality = "fast"
    cameras: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "cameras", tuple(self.cameras))  # a saved network's settings hold a list

    @property
    def view(self) -> View:
        return View(self.size, self.quality, self.cameras)

    def films(self, frames: Mapping[str, Tensor]) -> list[Tensor]:
        """Frames [N, H, W, 3] of its cameras, in its order.

        Raises:
            ValueError: a camera is missing, or it has no name to choose one of several by.
        """
        cameras = self.cameras or tuple(frames)
        missing = [camera for camera in cameras if camera not in frames]
        if missing or len(cameras) != max(1, len(self.cameras)):
            looks = ", ".join(self.cameras) or "one camera"
            raise ValueError(
                f"the vision tower looks through {looks}, and was given frames of {', '.join(frames) or 'none'}"
            )
        return [frames[camera] for camera in cameras]


class Tower(nn.Module):
    """Frames [N, H, W, 3] uint8 -> features [N, ``features``].

    It is always in evaluation mode, so that what was sampled and what is learned from are the same function; batch
    normalisation keeps the statistics that it came with.

    Raises:
        UsageError: an unknown model, one without feature maps, or without one of this stride.
    """

    mean: Tensor
    std: Tensor
    places: Tensor

    def __init__(self, vision: Vision) -> None:
        import timm

        library: Any = timm
        super().__init__()
        self.vision = vision
        if vision.pool not in ("keypoints", "mean"):
            raise unknown("pool", vision.pool, ("keypoints", "mean"))
        try:
            strides = library.create_model(vision.name, features_only=True).feature_info.reduction()
        except RuntimeError as error:
            if "Unknown model" in str(error):
                raise unknown("timm model", vision.name, timm.list_models()) from error
            raise UsageError(f"timm model {vision.name} gives no feature maps ({error}): take another") from error
        if vision.stride not in strides:
            raise UsageError(f"timm model {vision.name} has feature maps of stride {strides}, not {vision.stride}")
        last = len(strides) - 1 - strides[::-1].index(vision.stride)
        self.body = library.create_model(
            vision.name, pretrained=vision.pretrained, features_only=True, out_indices=(last,)
        )
        data = library.data.resolve_model_data_config(self.body)
        self.register_buffer("mean", 255 * torch.tensor(data["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(data["std"]).view(3, 1, 1), persistent=False)
        channels = int(self.body.feature_info.channels()[-1])
        self.features = channels * (2 if vision.pool == "keypoints" else 1)
        if vision.frozen:
            self.freeze()
        self.eval()

    def freeze(self) -> None:
        """From now on it learns no more."""
        self.vision = replace(self.vision, frozen=True)
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> Tower:
        super().train(False)
        return self

    def forward(self, frames: Tensor) -> Tensor:
        expected = (self.vision.size, self.vision.size, 3)
        if tuple(frames.shape[1:]) != expected or frames.dtype != torch.uint8:
            found = f"{str(frames.dtype).removeprefix('torch.')} {list(frames.shape)}"
            raise ValueError(f"the vision tower takes frames uint8 [N, {', '.join(map(str, expected))}], not {found}")
        shown = (frames.permute(0, 3, 1, 2).float() - self.mean) / self.std
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.vision.frozen):
            found = self.body(shown)[0]
        return keypoints(found) if self.vision.pool == "keypoints" else found.mean((2, 3))


def keypoints(maps: Tensor) -> Tensor:
    """Maps [N, F, h, w] -> [N, 2 F]: the mean place under a softmax over each map, x and y in -1..1 (right, down)."""
    size, _, height, width = maps.shape
    weight = maps.flatten(2).softmax(-1).view_as(maps)
    x = (weight.sum(2) * torch.linspace(-1, 1, width, device=maps.device)).sum(-1)
    y = (weight.sum(3) * torch.linspace(-1, 1, height, device=maps.device)).sum(-1)
    return torch.stack([x, y], -1).view(size, -1)


def shifted(frames: Tensor, most: int, random: torch.Generator) -> Tensor:
    """Frames [N, H, W, 3], each moved by up to ``most`` pixels per axis; the edge is repeated.

    As in DrQ (arXiv 2004.13649, not checked).
    """
    size, height, width, _ = frames.shape
    moves = torch.randint(-most, most + 1, (size, 2), generator=random).to(frames.device)
    rows = (torch.arange(height, device=frames.device) + moves[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width, device=frames.device) + moves[:, 1:]).clamp(0, width - 1)
    first = torch.arange(size, device=frames.device)[:, None, None]
    return frames[first, rows[:, :, None], columns[:, None, :]]
