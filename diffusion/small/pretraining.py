"""Pretraining of the small default pipeline: flow matching on true renders, to a start that is good but not finished.

Flow matching (Lipman et al., arXiv 2210.02747; rectified form, not checked): x_t = (1 - t) x_0 + t eps with t uniform,
the transformer regresses eps - x_0.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...cache import cache_folder
from ...envs.toys import shapes
from ...fitting import fit
from ...trainers.randomness import generator, seed_of
from .shapes_pipeline import ShapesPipeline

VERSION = 3
"""Part of the cache's key: raise it when the model or its training changes."""

FILLERS = ("a", "at", "the", "on", "background")
"""Words of every caption, which the tokenizer drops."""


@dataclass(frozen=True)
class Pretraining:
    """How the default pipeline is made; the values were found on the split of seed 1.

    Attributes:
        steps: gradient steps of AdamW on ``batch`` true renders of all 288 scenes.
        average: share of the old average in the exponential moving average of weights that is kept.
    """

    size: int = 16
    width: int = 96
    layers: int = 4
    steps: int = 900
    batch: int = 32
    lr: float = 5e-3
    average: float = 0.99
    seed: int = 0


def default_pipeline(settings: Pretraining | None = None) -> Path:
    """The folder of the default pipeline; made at first use (about a CPU minute) and kept in the cache."""
    settings = settings or Pretraining()
    name = f"shapes-v{VERSION}-" + "-".join(f"{k[0]}{v:g}" for k, v in asdict(settings).items())
    folder = cache_folder() / name
    if not folder.exists():
        partial = folder.with_name(f"{name}.{os.getpid()}.partial")
        pretrain(settings, told="making the small default pipeline, once").save_pretrained(str(partial))
        try:
            os.replace(partial, folder)
        except OSError:  # another process was faster
            shutil.rmtree(partial)
    return folder


def quiet() -> None:
    """No progress bars of the libraries while parts of a pipeline are read and written."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        parts: Any = library.utils.logging
        parts.disable_progress_bar()


def pretrain(settings: Pretraining, *, told: str = "") -> ShapesPipeline:
    """A pipeline that learned from true renders; the same for the same settings, with the same cores and threads.

    Args:
        told: what a person is told of it on the way, as of ``fit``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("pretraining", settings.seed))
        pipeline = untrained(settings)
    learned = [*pipeline.transformer.parameters(), *pipeline.text_encoder.parameters()]
    averages = [p.detach().clone() for p in learned]
    random = generator("pretraining", "data", settings.seed)
    captions = [shapes.caption(scene) for scene in shapes.SCENES]

    def loss(_: int) -> Tensor:
        scenes = torch.randint(len(captions), (settings.batch,), generator=random)
        clean = 2 * shapes.sample(scenes, random, settings.size) - 1
        return flow_matching_loss(pipeline, [captions[i] for i in scenes.tolist()], clean, random)

    def average(step: int) -> None:
        with torch.no_grad():
            mix = 1 - min(settings.average, (1 + step) / (10 + step))
            torch._foreach_lerp_(averages, [p.detach() for p in learned], mix)

    rates = [settings.lr * _rate(step, settings.steps) for step in range(settings.steps)]
    fit(learned, loss, rates, betas=(0.9, 0.99), max_grad_norm=1.0, after=average, told=told)
    with torch.no_grad():
        for mine, smooth in zip(learned, averages, strict=True):
            mine.copy_(smooth)
    return pipeline


def flow_matching_loss(
    pipeline: ShapesPipeline, captions: Sequence[str], clean: Tensor, random: torch.Generator
) -> Tensor:
    """Mean squared error of the flow at uniform times; clean [B, 3, H, W] in -1..1."""
    t = torch.rand(len(clean), generator=random)
    noise = torch.randn(clean.shape, generator=random)
    told = pipeline.encode_prompt(captions)
    flow = pipeline.transformer(
        hidden_states=torch.lerp(clean, noise, t[:, None, None, None]),
        timestep=1000 * t,
        encoder_hidden_states=told[:, None],
        pooled_projections=told,
        return_dict=False,
    )[0]
    return nn.functional.mse_loss(flow, noise - clean)


def untrained(settings: Pretraining) -> ShapesPipeline:
    """The pipeline before its first step."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel

    parts: Any = diffusers  # its classes are untyped
    tokenizer = _tokenizer()
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.width,
            intermediate_size=settings.width,
            num_hidden_layers=0,  # the embedding table alone
            num_attention_heads=1,
            max_position_embeddings=16,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.pad_token_id,
        )
    )
    transformer = parts.SD3Transformer2DModel(
        sample_size=settings.size,
        patch_size=4,
        in_channels=3,
        out_channels=3,
        num_layers=settings.layers,
        attention_head_dim=32,
        num_attention_heads=settings.width // 32,
        joint_attention_dim=settings.width,
        caption_projection_dim=settings.width,
        pooled_projection_dim=settings.width,
        pos_embed_max_size=settings.size // 4,
    )
    # Blocks that begin as the identity learn sooner (adaLN-Zero; Peebles and Xie, arXiv 2212.09748, not checked).
    for name, module in transformer.named_modules():
        if name == "proj_out" or ("norm" in name and name.endswith(".linear")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.normal_(cast(Tensor, text.get_input_embeddings().weight))
    pipeline = ShapesPipeline(tokenizer, text, transformer, parts.FlowMatchEulerDiscreteScheduler())
    cast(Any, pipeline).set_progress_bar_config(disable=True)
    return pipeline


def known_words(prompt: str) -> tuple[list[str], list[str]]:
    """The words of a prompt that say something to the default pipeline, and those that it overlooks."""
    said = [word for word in re.findall(r"\w+", prompt) if word not in FILLERS]
    known = _words()
    return [word for word in said if word in known], [word for word in said if word not in known]


def _words() -> set[str]:
    return {word for scene in shapes.SCENES for word in shapes.caption(scene).split()} - set(FILLERS)


def _tokenizer() -> Any:
    """One token per word of the world's captions that says something."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import Replace
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = sorted(_words())
    model = Tokenizer(WordLevel({"[pad]": 0, "[unk]": 1} | {w: i + 2 for i, w in enumerate(words)}, unk_token="[unk]"))
    model.normalizer = Replace(Regex(rf"\b({'|'.join(FILLERS)})\b"), "")
    model.pre_tokenizer = Whitespace()
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=model, pad_token="[pad]", unk_token="[unk]", model_max_length=16)


def _rate(step: int, steps: int) -> float:
    """Warm-up over 30 steps, then a cosine to a twentieth."""
    return min(1.0, (step + 1) / 30) * (0.525 + 0.475 * math.cos(math.pi * step / steps))
