"""OpenVLA's network (Prismatic) as a model of today's transformers: pictures by DINOv2 and SigLIP, actions by Llama 2.

Names of weights and of the configuration's fields are those of the published checkpoints (openvla/openvla:
prismatic/extern/hf/modeling_prismatic.py), so that a folder with ``"model_type": "openvla"`` is read without the code
that it brings. Features are the towers' second to last layers, side by side; three linear layers bring them to the
language model, where they stand behind the first token. Other than there, they stand on placeholders in the token ids,
which makes batches, padding and caches those of every other family.

Written from knowledge of that code; the published weights were not loaded here, and tiny random ones are what the tests
run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

TOWERS = ("vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224")
DINO, SIGLIP = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class PrismaticConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """The published ``config.json``; fields that nothing here reads are kept as they are.

    Attributes:
        timm_model_ids, image_sizes: the towers, and the side of the pictures that each sees.
        text_config: of the language model.
        pad_to_multiple_of: rows of the embedding that no token has; the last of them stands for pictures.
        image_token_id: what stands for pictures; None is the last row.
        tower_options: further arguments of timm's models, for small ones.
    """

    model_type = "openvla"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": AutoConfig}

    timm_model_ids: list[str] | None = None
    image_sizes: list[int] | None = None
    text_config: Any = None
    pad_to_multiple_of: int = 64
    image_token_id: int | None = None
    timm_override_act_layers: list[str | None] | None = None
    tower_options: list[dict[str, Any]] | None = None
    norm_stats: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.timm_model_ids = list(self.timm_model_ids or TOWERS)
        self.image_sizes = list(self.image_sizes or [224] * len(self.timm_model_ids))
        if not isinstance(self.text_config, PreTrainedConfig):
            given = dict(self.text_config or {})
            self.text_config = AutoConfig.for_model(given.pop("model_type", "llama"), **given)
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        if self.image_token_id is None:
            self.image_token_id = int(self.text_config.vocab_size) - 1


class _Scaled(nn.Module):
    """timm's LayerScale by the name that checkpoints have for its weight."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(scale.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale_factor


class Towers(nn.Module):
    """Pictures [N, 3 T, H, W], normalised for each of T towers, as features [N, P, D] of their patches."""

    def __init__(self, config: Any) -> None:
        import timm
        from timm.layers.layer_scale import LayerScale

        library: Any = timm
        super().__init__()
        names = ("featurizer", "fused_featurizer")[: len(config.timm_model_ids)]
        extra = config.tower_options or [
            {} if act is None else {"act_layer": act}
            for act in config.timm_override_act_layers or [None for _ in names]
        ]
        for name, model, size, options in zip(names, config.timm_model_ids, config.image_sizes, extra, strict=True):
            tower = library.create_model(model, pretrained=False, num_classes=0, img_size=size, **options)
            for place, part in list(tower.named_modules()):
                if isinstance(part, LayerScale):
                    tower.set_submodule(place, _Scaled(part.gamma))
            self.add_module(name, tower)
        self.towers = names
        self.gradient_checkpointing = False  # transformers sets it
        self.features = sum(int(cast(Any, self.get_submodule(name)).embed_dim) for name in names)

    @property
    def patches(self) -> int:
        tower: Any = self.get_submodule(self.towers[0])
        return int(tower.patch_embed.num_patches)

    def forward(self, pixels: Tensor) -> Tensor:
        seen = []
        for name, picture in zip(self.towers, torch.split(pixels, 3, 1), strict=True):
            tower: Any = self.get_submodule(name)
            tower.set_grad_checkpointing(self.gradient_checkpointing and self.training)
            how = {"norm": False, "stop_early": True, "output_fmt": "NLC", "intermediates_only": True}
            seen.append(tower.forward_intermediates(picture, [len(tower.blocks) - 2], **how)[0])
        return torch.cat(seen, -1)


class Projector(nn.Module):
    """Features [N, P, D] as embeddings of the language model."""

    def __init__(self, features: int, size: int, *, fused: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, 4 * features if fused else size)
        self.fc2 = nn.Linear(4 * features if fused else size, size)
        self.fc3 = nn.Linear(size, size) if fused else None

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(features)))
        return out if self.fc3 is None else self.fc3(F.gelu(out))


class PrismaticVLA(PreTrainedModel, GenerationMixin):
    """Token ids [N, L] with placeholders and pictures [N, 3 T, H, W] -> logits, as of any model of transformers.

    Args of ``forward``: those of a causal model, and ``pixel_values``; "logits_to_keep" last positions get logits.
    """

    config_class = PrismaticConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["LlamaDecoderLayer", "Block"]  # noqa: RUF012  as transformers declares it

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.vision_backbone = Towers(config)
        size = int(config.text_config.hidden_size)
        self.projector = Projector(self.vision_backbone.features, size, fused=len(config.timm_model_ids) > 1)
        models: Any = AutoModelForCausalLM
        self.language_model = models.from_config(config.text_config)
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> Any:
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        return self.language_model.get_output_embeddings()

    def get_decoder(self) -> Any:
        return self.language_model.get_decoder()

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **options: Any,
    ) -> CausalLMOutputWithPast:
        embedded = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        if pixel_values is not None:
            features = self.projector(self.vision_backbone(pixel_values)).to(embedded.dtype)
            places = (input_ids == self.config.image_token_id)[..., None]
            embedded = embedded.masked_scatter(places, features)
        options |= {"attention_mask": attention_mask, "position_ids": position_ids, "logits_to_keep": logits_to_keep}
        result: CausalLMOutputWithPast = self.language_model(inputs_embeds=embedded, **options)
        return result

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        pixels = kwargs.pop("pixel_values", None)
        whole = kwargs.get("is_first_iteration", False) or not kwargs.get("use_cache", True)
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(input_ids, **kwargs)
        return inputs | {"pixel_values": pixels if whole else None}


class PrismaticProcessor:
    """Texts and pictures as the network reads them: ids with placeholders behind the first, and normalised pixels.

    Args:
        tokenizer: of the language model; it begins a text with its first token.
        picture: placeholder of a patch; patches: of a picture.
        size: side of a picture, to which others are resized without regard to their shape.
        normalisation: (mean, std) per channel for each tower.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        picture: int,
        patches: int,
        size: int = 224,
        normalisation: Sequence[tuple[Sequence[float], Sequence[float]]] = (DINO, SIGLIP),
    ) -> None:
        self.tokenizer, self.picture, self.patches, self.size = tokenizer, picture, patches, size
        self.normalisation = tuple(normalisation)

    @classmethod
    def for_model(cls, model: Any, tokenizer: Any) -> PrismaticProcessor:
        config = model.config
        known = {name: norm for name, norm in zip(TOWERS, (DINO, SIGLIP), strict=True)}
        norms = [known.get(name, SIGLIP if "siglip" in name else DINO) for name in config.timm_model_ids]
        patches, size = model.vision_backbone.patches, int(config.image_sizes[0])
        return cls(tokenizer, picture=int(config.image_token_id), patches=patches, size=size, normalisation=norms)

    def __call__(self, *, text: Sequence[str], images: Sequence[Any], return_tensors: str = "pt") -> dict[str, Tensor]:
        """Rows of equal texts, or of texts of equal length, with a picture each."""
        ids = torch.tensor([self.tokenizer(each)["input_ids"] for each in text])
        placeholders = torch.full((len(ids), self.patches), self.picture)
        ids = torch.cat([ids[:, :1], placeholders, ids[:, 1:]], 1)
        pictures = [image[0] if isinstance(image, Sequence) else image for image in images]
        pixels = torch.stack([self._pixels(picture) for picture in pictures])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}

    def _pixels(self, picture: Any) -> Tensor:
        from PIL import Image

        if picture.size != (self.size, self.size):
            picture = picture.resize((self.size, self.size), Image.Resampling.BICUBIC)
        values = torch.from_numpy(np.array(picture, np.float32)).permute(2, 0, 1) / 255
        norms = [(torch.tensor(list(part))[:, None, None] for part in norm) for norm in self.normalisation]
        return torch.cat([(values - mean) / std for mean, std in norms])

    def save_pretrained(self, folder: Any) -> None:
        """The tokenizer; all else follows from the model's configuration."""
        self.tokenizer.save_pretrained(folder)
