"""Scores of images by published models: aesthetics, agreement with the prompt, human preference.

    reward = 0.5 * Reward(PickScore(device="cuda")) + 0.5 * Reward(LaionAesthetic(device="cuda"))

Nothing is loaded before the first call. The models are frozen and their scores are differentiable functions of
the images: resizing and normalisation are torch operations that give what each model's own processor gives, so
that reward gradients (AlignProp, DRaFT, ReFL) pass through. Every score is called as
``score(outputs, prompts)`` with outputs as in ``images.py`` and returns a float32 tensor [B] on the images' device.

How scores of different models compare is not known; weigh them by their spread on your own images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UsageError
from ..models import weights
from .images import as_float

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
VIT_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
Fit = Literal["shortest", "longest", "exact"]


@dataclass(frozen=True)
class Pixels:
    """What an image processor does to pixels, as a torch function with gradient.

    Differs from the processor by rounding only: at most 2 of 255 grey levels (tested). The value is clamped to
    0..1 after resizing as in 8-bit images, but the gradient passes as if it were not, since a saturated pixel
    would otherwise never be moved again.

    Attributes:
        height, width: what the model takes, in pixels.
        fit: bring the shortest edge to size and cut the middle; the longest, and pad with black; or squeeze.
        resize: the length of that edge, where it is not the model's own.
        mode: "bicubic" or "bilinear", both antialiased.
        mean, std: of the three channels.
    """

    height: int
    width: int
    fit: Fit = "shortest"
    resize: int | None = None
    mode: str = "bicubic"
    mean: Sequence[float] = CLIP_MEAN
    std: Sequence[float] = CLIP_STD

    @classmethod
    def of(cls, processor: Any) -> Pixels:
        """The settings of a transformers image processor of the CLIP and SigLIP kind.

        Raises:
            UsageError: it does something that this function does not.
        """
        size = {key: value for key, value in dict(processor.size).items() if value is not None}
        mode = {2: "bilinear", 3: "bicubic"}.get(int(processor.resample))
        known = mode is not None and processor.do_resize and processor.do_normalize
        style: dict[str, Any] = {"mode": mode, "mean": tuple(processor.image_mean), "std": tuple(processor.image_std)}
        if known and set(size) == {"shortest_edge"} and processor.do_center_crop:
            crop = dict(processor.crop_size)
            return cls(crop["height"], crop["width"], "shortest", size["shortest_edge"], **style)
        if known and set(size) == {"height", "width"} and not getattr(processor, "do_center_crop", False):
            return cls(size["height"], size["width"], "exact", **style)
        raise UsageError(f"{type(processor).__name__} with size {size} is not supported; only resize, crop, normalise")

    @classmethod
    def of_model(cls, name_or_path: str) -> Pixels:
        """The settings that a model was published with."""
        from transformers import AutoImageProcessor

        processor: Any = AutoImageProcessor
        return cls.of(processor.from_pretrained(name_or_path))

    def __call__(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in 0..1 -> [B, 3, height, width], normalised; float32."""
        images = images.float()
        target = self._target(images.shape[-2], images.shape[-1])
        if target != tuple(images.shape[-2:]):
            # Rows first, then columns, with a clamp after each: what 8-bit resizing does.
            for shape in ((images.shape[-2], target[1]), target):
                images = F.interpolate(images, shape, mode=self.mode, align_corners=False, antialias=True)
                images = images + (images.clamp(0, 1) - images).detach()
        images = self._boxed(images)
        mean, std = (torch.tensor(list(v), device=images.device).view(3, 1, 1) for v in (self.mean, self.std))
        return (images - mean) / std

    def _target(self, height: int, width: int) -> tuple[int, int]:
        if self.fit == "exact":
            return self.height, self.width
        if self.fit == "longest":
            scale = self.height / max(height, width)
            return round(height * scale), round(width * scale)
        short = self.resize or self.height
        if height <= width:
            return short, int(short * width / height)
        return int(short * height / width), short

    def _boxed(self, images: Tensor) -> Tensor:
        """Padded with black where too small, the middle cut out where too large."""
        height, width = images.shape[-2:]
        down, right = max(self.height - height, 0), max(self.width - width, 0)
        images = F.pad(images, (right // 2, right - right // 2, down // 2, down - down // 2))
        top, left = (images.shape[-2] - self.height) // 2, (images.shape[-1] - self.width) // 2
        return images[..., top : top + self.height, left : left + self.width]


@dataclass(eq=False)
class _HubScore:
    """What all have in common: loading on the first call, frozen weights, one device."""

    differentiable: ClassVar[bool] = True

    name_or_path: str
    device: str = field(default="cpu", kw_only=True)
    dtype: torch.dtype = field(default=torch.float32, kw_only=True)
    at_once: int = field(default=48 * 2**20, kw_only=True)
    """Bytes of pictures, in float32, that are looked at at once where nobody wants a gradient."""

    def __call__(self, outputs: Sequence[Any] | Tensor, prompts: Sequence[str], **columns: Any) -> Tensor:
        """Scores [B], float32; without a gradient a few pictures are looked at at once (``at_once``).

        Args:
            outputs: [B, 3, H, W] in 0..1, with or without gradient, or B images of one size.
            prompts: B texts.

        Raises:
            ValueError: images out of range, another number of prompts, or a prompt that is no text.
            UsageError: the model cannot be loaded.
        """
        pictures = as_float(outputs)
        if len(prompts) != len(pictures):
            raise ValueError(f"{len(pictures)} images but {len(prompts)} prompts")
        for index, prompt in enumerate(prompts):
            if not isinstance(prompt, str):
                raise ValueError(f"prompt {index} is a {type(prompt).__name__}, not a text")
        if pictures.requires_grad and torch.is_grad_enabled():
            return self.score(pictures.to(self.device), list(prompts)).float().to(pictures.device)
        size = max(1, self.at_once // max(1, pictures[:1].numel() * 4))
        scores = [torch.zeros(0, device=pictures.device)]
        with torch.no_grad():
            for first in range(0, len(pictures), size):
                some = pictures[first : first + size].to(self.device)
                scores.append(self.score(some, list(prompts[first : first + size])).float().to(pictures.device))
        return torch.cat(scores)

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        raise NotImplementedError

    def frozen(self, model: nn.Module) -> nn.Module:
        """The model where and how it will be used: on the device, in eval mode, without gradients of its own."""
        return model.to(self.device, self.dtype).eval().requires_grad_(False)

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs: the arguments. It loads the weights itself."""
        return {key: value for key, value in vars(self).items() if key != "parts"}


@dataclass(eq=False)
class LaionAesthetic(_HubScore):
    """How much people would like a picture, about 1 to 10 (LAION-Aesthetics v2); the prompt is not looked at.

    The L2-normalised image embedding of CLIP ViT-L/14 goes through linear layers 768, 1024, 128, 64, 16, 1
    without any non-linearity. Checked against the code (christophschuhmann/improved-aesthetic-predictor).

    Args:
        name_or_path: a CLIP whose image embedding the head was trained on.
        head: file, folder or hub repository of the head's weights.
        head_file: the file in such a folder or repository.
    """

    families: ClassVar[frozenset[str]] = frozenset({"aesthetic"})

    name_or_path: str = "openai/clip-vit-large-patch14"
    head: str = "trl-lib/ddpo-aesthetic-predictor"
    head_file: str = "aesthetic-model.pth"

    @cached_property
    def parts(self) -> tuple[Any, Any, Any, Pixels]:
        """CLIP's image tower and its projection, the head and the pixels."""
        from transformers import CLIPModel

        head = weights.linear_stack(weights.read(weights.find(self.head, self.head_file)))
        with weights.loading(self.name_or_path):
            clip = CLIPModel.from_pretrained(self.name_or_path)
            pixels = Pixels.of_model(self.name_or_path)
        takes, gives = head[0].in_features, clip.visual_projection.out_features
        if takes != gives:
            raise UsageError(f'the head takes {takes} numbers, the images of "{self.name_or_path}" are {gives}')
        return self.frozen(clip.vision_model), self.frozen(clip.visual_projection), self.frozen(head), pixels

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        tower, projection, head, pixels = self.parts
        embedding = projection(tower(pixel_values=pixels(images).to(self.dtype)).pooler_output)
        score: Tensor = head(F.normalize(embedding, dim=-1)).squeeze(-1)
        return score


@dataclass(eq=False)
class _TwoTowers(_HubScore):
    """An image and a text tower of transformers that meet in one space: CLIP, SigLIP and their fine-tunings."""

    @property
    def processor(self) -> str:
        """Whose tokenizer and image processor are used."""
        return self.name_or_path

    @cached_property
    def parts(self) -> tuple[Any, Any, Pixels]:
        """Model, tokenizer and pixels."""
        from transformers import AutoTokenizer

        with weights.loading(self.processor):
            tokenizer = AutoTokenizer.from_pretrained(self.processor)
            pixels = Pixels.of_model(self.processor)
        return self.frozen(self.load()), tokenizer, pixels

    def load(self) -> nn.Module:
        from transformers import AutoModel

        with weights.loading(self.name_or_path):
            model: nn.Module = AutoModel.from_pretrained(self.name_or_path)
        for need in ("get_image_features", "get_text_features", "logit_scale"):
            if not hasattr(model, need):
                raise UsageError(f'"{self.name_or_path}" is a {type(model).__name__}, not of the CLIP or SigLIP kind')
        return model

    def cosine(self, images: Tensor, prompts: list[str]) -> Tensor:
        """[B], with gradient to the images."""
        model, _, pixels = self.parts
        seen = model.get_image_features(pixel_values=pixels(images).to(self.dtype)).pooler_output
        return (F.normalize(seen.float(), dim=-1) * self.texts(prompts)).sum(-1)

    @torch.no_grad()
    def texts(self, prompts: list[str]) -> Tensor:
        """[B, D] unit vectors; each distinct prompt is encoded once, since groups share theirs."""
        model, tokenizer, _ = self.parts
        distinct = list(dict.fromkeys(prompts))
        # SigLIP was trained on padded texts without a mask; in CLIP nothing looks at what follows the end token.
        length = model.config.text_config.max_position_embeddings
        tokens = tokenizer(distinct, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        read = model.get_text_features(input_ids=tokens["input_ids"].to(self.device)).pooler_output
        rows = torch.tensor([distinct.index(prompt) for prompt in prompts], device=self.device)
        return F.normalize(read.float(), dim=-1)[rows]


@dataclass(eq=False)
class CLIPScore(_TwoTowers):
    """2.5 · max(cos(image, "A photo depicts " + prompt), 0), in 0..2.5 (arXiv 2104.08718, equation 1).

    Checked against the code (jmhessel/clipscore), which uses the default model. The score is 0 and has no
    gradient where the cosine is negative.

    Args:
        name_or_path: a CLIP or SigLIP model.
        prefix: put before each prompt; the paper's by default.
        probability: with SigLIP, the probability sigmoid(scale · cos + bias) that the two belong together
            (arXiv 2303.15343), in 0..1, instead.
    """

    minimum: ClassVar[float] = 0.0

    name_or_path: str = "openai/clip-vit-base-patch32"
    prefix: str = field(default="A photo depicts ", kw_only=True)
    probability: bool = field(default=False, kw_only=True)

    @property
    def families(self) -> frozenset[str]:
        """Those of CLIP, or of SigLIP."""
        return frozenset({"siglip" if "siglip" in self.name_or_path.lower() else "clip"})

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        model = self.parts[0]
        if self.probability and not hasattr(model, "logit_bias"):
            raise UsageError(f'"{self.name_or_path}" gives no probabilities: only SigLIP models do')
        cosine = self.cosine(images, [self.prefix + prompt for prompt in prompts])
        if self.probability:
            logit: Tensor = model.logit_scale.float().exp() * cosine + model.logit_bias.float()
            return logit.sigmoid()
        return 2.5 * cosine.clamp(min=0)


@dataclass(eq=False)
class PickScore(_TwoTowers):
    """exp(logit scale) · cos(image, prompt), about 17 to 24 (arXiv 2305.01569).

    Checked against the code (yuvalkirstain/PickScore).

    Args:
        name_or_path: the fine-tuned CLIP.
        processor: whose tokenizer and image processor are used; the published score takes those of
            the CLIP that it was fine-tuned from.
        scale: multiplies the score; 1 / 26 brings it near 0..1, as some trainers do.
    """

    families: ClassVar[frozenset[str]] = frozenset({"pickscore"})

    name_or_path: str = "yuvalkirstain/PickScore_v1"
    processor: str = VIT_H
    scale: float = field(default=1.0, kw_only=True)

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        temperature: Tensor = self.parts[0].logit_scale.float().exp()
        return self.scale * temperature * self.cosine(images, prompts)


@dataclass(eq=False)
class HPSv2(_TwoTowers):
    """cos(image, prompt) in a CLIP ViT-H tuned to human preference, about 0.2 to 0.35 (arXiv 2306.09341).

    The published files hold open_clip's tensors; they are renamed to a transformers ``CLIPModel``, so that
    open_clip is not needed. The image is scaled by its longest edge and padded with black, as the published
    scorer does. Checked against the code (tgxs002/HPSv2), but not against its numbers.

    Args:
        name_or_path: file, folder or hub repository of the weights.
        file: the file in such a folder or repository; "HPS_v2_compressed.pt" is version 2.0.
        processor: gives configuration, tokenizer and normalisation, not weights.
    """

    families: ClassVar[frozenset[str]] = frozenset({"hps"})

    name_or_path: str = "xswu/HPSv2"
    file: str = "HPS_v2.1_compressed.pt"
    processor: str = VIT_H

    @cached_property
    def parts(self) -> tuple[Any, Any, Pixels]:
        """Model, tokenizer and pixels."""
        model, tokenizer, pixels = super().parts
        return model, tokenizer, Pixels(pixels.height, pixels.width, "longest", mean=pixels.mean, std=pixels.std)

    def load(self) -> nn.Module:
        from transformers import CLIPConfig

        with weights.loading(self.processor):
            config = CLIPConfig.from_pretrained(self.processor)
        return weights.filled_clip(config, weights.read(weights.find(self.name_or_path, self.file)))

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.cosine(images, prompts)


@dataclass(eq=False)
class ImageReward(_HubScore):
    """Human preference, standardised to mean 0 and deviation 1 on its authors' data (arXiv 2304.05977).

    A BLIP text encoder reads the prompt (35 tokens) with cross-attention to the image; its first hidden state
    goes through linear layers without non-linearity: (s - 0.16717) / 1.03334. Checked against the code
    (THUDM/ImageReward), but not against its numbers. The published file is turned into transformers' BLIP;
    all sizes are read off its tensors.

    Args:
        name_or_path: file, folder or hub repository of the weights.
        file: the file in such a folder or repository.
        tokenizer: BERT's.
    """

    families: ClassVar[frozenset[str]] = frozenset({"imagereward"})
    mean: ClassVar[float] = 0.16717362830052426
    deviation: ClassVar[float] = 1.0333394966054072

    name_or_path: str = "THUDM/ImageReward"
    file: str = "ImageReward.pt"
    tokenizer: str = "google-bert/bert-base-uncased"

    @cached_property
    def parts(self) -> tuple[Any, Any, Any, Any, Pixels]:
        """Image tower, text tower, head, tokenizer and pixels."""
        from transformers import AutoTokenizer

        with weights.loading(self.tokenizer):
            tokenizer = AutoTokenizer.from_pretrained(self.tokenizer)
        state = weights.read(weights.find(self.name_or_path, self.file))
        vision = weights.blip_vision(weights.below(state, "blip.visual_encoder."))
        text = weights.blip_text(weights.below(state, "blip.text_encoder."))
        head = weights.linear_stack(weights.below(state, "mlp."))
        size = int(vision.config.image_size)
        return self.frozen(vision), self.frozen(text), self.frozen(head), tokenizer, Pixels(size, size)

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        vision, text, head, tokenizer, pixels = self.parts
        seen = vision(pixel_values=pixels(images).to(self.dtype)).last_hidden_state
        tokens = tokenizer(prompts, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
        read = text(
            input_ids=tokens["input_ids"].to(self.device),
            attention_mask=tokens["attention_mask"].to(self.device),
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=self.device),
        ).last_hidden_state[:, 0]
        score: Tensor = (head(read).squeeze(-1).float() - self.mean) / self.deviation
        return score
