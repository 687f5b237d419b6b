"""Published image scorers on tiny random models of the same classes, saved and loaded as the published ones are."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from autotelic.errors import UsageError
from autotelic.rewards.image.hub import CLIPScore, HPSv2, ImageReward, LaionAesthetic, PickScore, Pixels
from autotelic.rewards.models import weights
from autotelic.rewards.reward import Reward

WORDS = ["[PAD]", "[UNK]", "A", "photo", "depicts", "a", "red", "green", "cat", "dog", "sits", "[END]"]
PROMPTS = ["a red cat", "a green dog", "a red cat"]


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A [END]", special_tokens=[("[END]", 11)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="[END]")
    fast.save_pretrained(folder)


def random_weights(model: nn.Module) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 0:
                parameter.add_(torch.randn_like(parameter) * (0.05 if parameter.ndim == 1 else 0.4))
    return model.eval()


def clip_config() -> Any:
    from transformers import CLIPConfig

    tower = {"intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": "gelu"}
    text = tower | {"hidden_size": 16, "vocab_size": 12, "max_position_embeddings": 10, "eos_token_id": 11}
    text |= {"bos_token_id": 0, "pad_token_id": 0}
    vision = tower | {"hidden_size": 24, "image_size": 16, "patch_size": 8}
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    from transformers import CLIPImageProcessor, CLIPModel

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("clip")
    random_weights(CLIPModel(clip_config())).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    save_tokenizer(folder)
    return str(folder)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> str:
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("siglip")
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = tower | {"vocab_size": 12, "max_position_embeddings": 8, "projection_size": 16, "eos_token_id": 11}
    text |= {"bos_token_id": 0, "pad_token_id": 0}
    vision = tower | {"image_size": 16, "patch_size": 8}
    random_weights(SiglipModel(SiglipConfig(text_config=text, vision_config=vision))).save_pretrained(folder)
    SiglipImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    save_tokenizer(folder)
    return str(folder)


def pictures(n: int = 3, height: int = 16, width: int = 16) -> Tensor:
    """Pictures of 8 bits, by default of the models' size, so that processors round nothing."""
    small = torch.rand(n, 3, 5, 7, generator=torch.Generator().manual_seed(5))
    return (F.interpolate(small, (height, width)) * 255).round() / 255


def as_pil(images: Tensor) -> list[Image.Image]:
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(image) for image in pixels]


def by_the_model(folder: str, images: Tensor, texts: list[str]) -> dict[str, Tensor]:
    """What transformers itself says, with its own processor and its own forward pass."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder).eval()
    seen = AutoImageProcessor.from_pretrained(folder)(as_pil(images), return_tensors="pt")
    length = model.config.text_config.max_position_embeddings
    read = AutoTokenizer.from_pretrained(folder)(texts, padding="max_length", max_length=length, return_tensors="pt")
    with torch.no_grad():
        out = model(input_ids=read["input_ids"], pixel_values=seen["pixel_values"])
    cosine = (out.image_embeds @ out.text_embeds.T).diagonal()
    return {"cosine": cosine, "logit": out.logits_per_image.diagonal()}


def gradient(score: Any, images: Tensor) -> Tensor:
    leaf = images.clone().requires_grad_()
    values = score(leaf, PROMPTS[: len(images)])
    (slope,) = torch.autograd.grad(values.sum(), leaf)
    return slope


# Pixels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["torchvision", "pil"])
@pytest.mark.parametrize(("height", "width"), [(48, 48), (37, 61), (61, 37), (9, 12), (16, 16)])
@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_pixels_are_those_of_the_models_own_processor(kind: str, height: int, width: int, backend: str) -> None:
    import transformers

    name = f"{kind}ImageProcessor" + ("Pil" if backend == "pil" else "")
    square = {"height": 16, "width": 16}
    processor = getattr(transformers, name)(
        **({"size": {"shortest_edge": 16}, "crop_size": square} if kind == "CLIP" else {"size": square})
    )
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))  # noise: the hardest case
    theirs = processor(image, return_tensors="pt")["pixel_values"]
    ours = Pixels.of(processor)(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 255)
    assert ours.shape == theirs.shape
    grey = (ours - theirs).abs() * torch.tensor(processor.image_std).view(3, 1, 1) * 255
    assert grey.max() <= 2.0


def test_the_longest_edge_fits_with_black_bars() -> None:
    pixels = Pixels(8, 8, "longest", mean=(0, 0, 0), std=(1, 1, 1))
    out = pixels(torch.ones(1, 3, 8, 16))
    assert torch.equal(out[0, 0].mean(-1), torch.tensor([0, 0, 1, 1, 1, 1, 0, 0.0]))


def test_a_saturated_pixel_keeps_its_gradient() -> None:
    edge = torch.zeros(1, 3, 32, 32)
    edge[..., 16:] = 1  # bicubic overshoots at this edge
    edge.requires_grad_()
    out = Pixels(16, 16, mean=(0, 0, 0), std=(1, 1, 1))(edge)
    assert out.min() >= 0 and out.max() <= 1
    (slope,) = torch.autograd.grad(out.sum(), edge)
    assert (slope > 0).float().mean() > 0.9
    assert slope.sum().item() == pytest.approx(3 * 16 * 16, rel=1e-4)


def test_a_processor_of_another_kind_is_refused() -> None:
    from transformers import CLIPImageProcessor

    with pytest.raises(UsageError, match="CLIPImageProcessor with size"):
        Pixels.of(CLIPImageProcessor(do_normalize=False))


# Scores ---------------------------------------------------------------------------------------------------------


def test_clip_score_is_the_papers_formula(clip: str) -> None:
    prompts = [word for word in ("cat", "dog sits", "a", "green") for _ in range(3)]
    images = pictures().repeat(4, 1, 1, 1)
    cosine = by_the_model(clip, images, [f"A photo depicts {p}" for p in prompts])["cosine"]
    assert (cosine > 0).any() and (cosine < 0).any()  # both branches are met
    score = CLIPScore(clip)(images, prompts)
    assert score == pytest.approx(2.5 * cosine.clamp(min=0), abs=1e-4)
    assert torch.equal(CLIPScore(clip)(as_pil(images), prompts), score)


@pytest.mark.parametrize("at_once", [1, 2 * 3 * 16 * 16 * 4, 3 * 3 * 16 * 16 * 4 + 1])
def test_scores_in_pieces_are_those_of_all_at_once(clip: str, at_once: int) -> None:
    """One, two and three pictures at a time, of eight; with a gradient there is one piece."""
    sizes: list[int] = []

    class Counted(CLIPScore):
        def score(self, images: Tensor, prompts: list[str]) -> Tensor:
            sizes.append(len(images))
            return super().score(images, prompts)

    images, prompts = pictures().repeat(3, 1, 1, 1)[:8], (PROMPTS * 3)[:8]
    whole = CLIPScore(clip)(images, prompts)
    pieces = Counted(clip, at_once=at_once)
    torch.testing.assert_close(pieces(images, prompts), whole, rtol=0, atol=1e-6)
    most = max(1, at_once // (3 * 16 * 16 * 4))
    assert sizes == [most] * (8 // most) + [8 % most] * (8 % most > 0)
    sizes.clear()
    scored = pieces(images.clone().requires_grad_(), prompts)
    torch.testing.assert_close(scored.detach(), whole, rtol=0, atol=1e-6)
    assert sizes == [8] and scored.requires_grad
    assert pieces(images[:0], []).shape == (0,)


def test_resized_pictures_score_as_the_models_own_processor_has_it(clip: str) -> None:
    images = pictures(height=40, width=56)
    cosine = by_the_model(clip, images, PROMPTS)["cosine"]
    assert CLIPScore(clip, prefix="")(images, PROMPTS) == pytest.approx(2.5 * cosine.clamp(min=0), abs=2e-2)


def test_the_prefix_matters(clip: str) -> None:
    images = pictures()
    bare = by_the_model(clip, images, PROMPTS)["cosine"]
    assert CLIPScore(clip, prefix="")(images, PROMPTS) == pytest.approx(2.5 * bare.clamp(min=0), abs=1e-4)


def test_siglip_gives_the_probability_that_image_and_text_match(siglip: str) -> None:
    images = pictures()
    logit = by_the_model(siglip, images, PROMPTS)["logit"]
    score = CLIPScore(siglip, prefix="", probability=True)
    assert score(images, PROMPTS) == pytest.approx(logit.sigmoid(), abs=1e-4)
    assert gradient(score, images).abs().sum() > 0


def test_a_clip_gives_no_probability(clip: str) -> None:
    with pytest.raises(UsageError, match="only SigLIP"):
        CLIPScore(clip, probability=True)(pictures(), PROMPTS)


def test_pick_score_is_the_models_own_logit(clip: str) -> None:
    images = pictures()
    logit = by_the_model(clip, images, PROMPTS)["logit"]
    assert PickScore(clip, clip)(images, PROMPTS) == pytest.approx(logit, abs=1e-3)
    assert logit.abs().max() > 1  # no cosine
    scaled = PickScore(clip, clip, scale=1 / 26)(images, PROMPTS)
    assert scaled == pytest.approx(PickScore(clip, clip)(images, PROMPTS) / 26, abs=1e-6)


def open_clip_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A CLIPModel's tensors under open_clip's names, written down from open_clip's modules, for two layers."""
    out = {
        "logit_scale": state["logit_scale"],
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "text_projection": state["text_projection.weight"].T.contiguous(),
        "visual.proj": state["visual_projection.weight"].T.contiguous(),
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
        "attn_mask": torch.zeros(10, 10),
    }
    for kind in ("weight", "bias"):
        out[f"ln_final.{kind}"] = state[f"text_model.final_layer_norm.{kind}"]
        out[f"visual.ln_pre.{kind}"] = state[f"vision_model.pre_layrnorm.{kind}"]
        out[f"visual.ln_post.{kind}"] = state[f"vision_model.post_layernorm.{kind}"]
        for tower, prefix in (("text", ""), ("vision", "visual.")):
            for n in range(2):
                old, new = f"{tower}_model.encoder.layers.{n}", f"{prefix}transformer.resblocks.{n}"
                qkv = [state[f"{old}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                out[f"{new}.attn.in_proj_{kind}"] = torch.cat(qkv)
                out[f"{new}.attn.out_proj.{kind}"] = state[f"{old}.self_attn.out_proj.{kind}"]
                out[f"{new}.ln_1.{kind}"] = state[f"{old}.layer_norm1.{kind}"]
                out[f"{new}.ln_2.{kind}"] = state[f"{old}.layer_norm2.{kind}"]
                out[f"{new}.mlp.c_fc.{kind}"] = state[f"{old}.mlp.fc1.{kind}"]
                out[f"{new}.mlp.c_proj.{kind}"] = state[f"{old}.mlp.fc2.{kind}"]
    return out


@pytest.fixture(scope="module")
def open_clip_file(clip: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPModel

    path = tmp_path_factory.mktemp("hps") / "HPS_v2.1_compressed.pt"
    state = open_clip_names(CLIPModel.from_pretrained(clip).state_dict())
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    return path


def test_hps_is_the_cosine_of_a_converted_open_clip(clip: str, open_clip_file: Path) -> None:
    images = pictures()
    cosine = by_the_model(clip, images, PROMPTS)["cosine"]
    for where in (open_clip_file, open_clip_file.parent):
        assert HPSv2(str(where), processor=clip)(images, PROMPTS) == pytest.approx(cosine, abs=1e-4)


def test_hps_pads_where_clip_cuts(clip: str, open_clip_file: Path) -> None:
    wide = torch.zeros(1, 3, 24, 24)
    wide[:, :, 6:18] = pictures(1, 12, 24)
    padded, bare = (HPSv2(str(open_clip_file), processor=clip)(x, PROMPTS[:1]) for x in (wide, wide[:, :, 6:18]))
    assert bare == pytest.approx(padded, abs=2e-2)
    cut = by_the_model(clip, wide[:, :, 6:18], PROMPTS[:1])["cosine"]
    assert abs(cut - bare).item() > 5e-2


def test_a_tensor_without_a_place_is_named() -> None:
    with pytest.raises(UsageError, match=r"visual\.attnpool\.c_proj\.weight has no place"):
        weights.clip_from_open_clip({"visual.attnpool.c_proj.weight": torch.zeros(1)})


def head_state(prefix: str, widths: list[int], numbers: list[int]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    state = {}
    for n, into, out in zip(numbers, widths[:-1], widths[1:], strict=True):
        state[f"{prefix}{n}.weight"] = torch.randn(out, into, generator=generator)
        state[f"{prefix}{n}.bias"] = torch.randn(out, generator=generator)
    return state


@pytest.mark.parametrize(("prefix", "suffix"), [("layers.", ".pth"), ("", ".pth"), ("layers.", ".safetensors")])
def test_aesthetic_is_a_linear_function_of_the_unit_embedding(
    clip: str, tmp_path: Path, prefix: str, suffix: str
) -> None:
    from transformers import CLIPModel

    state = head_state(prefix, [12, 10, 8, 6, 4, 1], [0, 2, 4, 6, 7])  # gaps where dropout was
    path = tmp_path / f"head{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    images = pictures()
    score = LaionAesthetic(clip, str(path))
    model = CLIPModel.from_pretrained(clip).eval()
    with torch.no_grad():
        seen = model.get_image_features(pixel_values=Pixels(16, 16)(images)).pooler_output
    x = seen / seen.norm(dim=-1, keepdim=True)
    for n in (0, 2, 4, 6, 7):
        x = x @ state[f"{prefix}{n}.weight"].T + state[f"{prefix}{n}.bias"]
    torch.testing.assert_close(score(images, PROMPTS), x[:, 0], rtol=1e-4, atol=1e-4)
    assert torch.equal(score(images, PROMPTS), score(images, ["anything"] * 3))


def test_a_head_for_another_clip_is_refused(clip: str, tmp_path: Path) -> None:
    torch.save(head_state("layers.", [768, 1], [0]), tmp_path / "head.pth")
    with pytest.raises(UsageError, match=r"takes 768 numbers, the images of .* are 12"):
        LaionAesthetic(clip, str(tmp_path), "head.pth")(pictures(), PROMPTS)


def image_reward_state() -> dict[str, Tensor]:
    """The tensors of a small ImageReward under the published names: one layer, 64 wide, 16 x 16 pixels."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, into: int, out: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into), (out,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    eye, ear = "blip.visual_encoder.", "blip.text_encoder."
    shapes |= {f"{eye}cls_token": (1, 1, 64), f"{eye}pos_embed": (1, 5, 64)}
    shapes |= {f"{eye}patch_embed.proj.weight": (64, 3, 8, 8), f"{eye}patch_embed.proj.bias": (64,)}
    layer(f"{eye}blocks.0.attn.qkv", 64, 192)
    layer(f"{eye}blocks.0.attn.proj", 64, 64)
    layer(f"{eye}blocks.0.mlp.fc1", 64, 32)
    layer(f"{eye}blocks.0.mlp.fc2", 32, 64)
    for name in ("blocks.0.norm1", "blocks.0.norm2", "norm"):
        norm(eye + name, 64)
    shapes |= {f"{ear}embeddings.word_embeddings.weight": (12, 64)}
    shapes |= {f"{ear}embeddings.position_embeddings.weight": (40, 64)}
    norm(f"{ear}embeddings.LayerNorm", 64)
    for block in ("attention", "crossattention"):
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            layer(f"{ear}encoder.layer.0.{block}.{part}", 64, 64)
        norm(f"{ear}encoder.layer.0.{block}.output.LayerNorm", 64)
    layer(f"{ear}encoder.layer.0.intermediate.dense", 64, 48)
    layer(f"{ear}encoder.layer.0.output.dense", 48, 64)
    norm(f"{ear}encoder.layer.0.output.LayerNorm", 64)
    generator = torch.Generator().manual_seed(4)
    state = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    state |= head_state("mlp.layers.", [64, 8, 1], [0, 2])
    state[f"{ear}embeddings.position_ids"] = torch.arange(40)[None]
    state["blip.text_proj.weight"] = torch.zeros(4, 64)  # published, and not used by the score
    return state


def attend(query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None = None) -> Tensor:
    scores = query @ key.transpose(-1, -2) / math.sqrt(64)
    return (scores if keep is None else scores.masked_fill(keep[:, None] == 0, -1e9)).softmax(-1) @ value


def image_reward_by_hand(state: dict[str, Tensor], pixels: Tensor, ids: Tensor, keep: Tensor) -> Tensor:
    """BLIP's forward pass for one head and one layer, straight from the published names."""

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, x: Tensor, eps: float) -> Tensor:
        return F.layer_norm(x, (64,), state[f"{name}.weight"], state[f"{name}.bias"], eps)

    eye, ear = "blip.visual_encoder.", "blip.text_encoder.encoder.layer.0."
    patches = F.conv2d(pixels, state[f"{eye}patch_embed.proj.weight"], state[f"{eye}patch_embed.proj.bias"], 8)
    x = torch.cat([state[f"{eye}cls_token"].expand(len(pixels), 1, 64), patches.flatten(2).mT], 1)
    x = x + state[f"{eye}pos_embed"]
    q, k, v = linear(f"{eye}blocks.0.attn.qkv", norm(f"{eye}blocks.0.norm1", x, 1e-6)).chunk(3, -1)
    x = x + linear(f"{eye}blocks.0.attn.proj", attend(q, k, v))
    x = x + linear(
        f"{eye}blocks.0.mlp.fc2", F.gelu(linear(f"{eye}blocks.0.mlp.fc1", norm(f"{eye}blocks.0.norm2", x, 1e-6)))
    )
    seen = norm(f"{eye}norm", x, 1e-6)
    words = state["blip.text_encoder.embeddings.word_embeddings.weight"][ids]
    places = state["blip.text_encoder.embeddings.position_embeddings.weight"][: ids.shape[1]]
    t = norm("blip.text_encoder.embeddings.LayerNorm", words + places, 1e-12)
    for block, other, mask in (("attention", None, keep), ("crossattention", seen, None)):
        source = t if other is None else other
        q = linear(f"{ear}{block}.self.query", t)
        k, v = (linear(f"{ear}{block}.self.{part}", source) for part in ("key", "value"))
        out = linear(f"{ear}{block}.output.dense", attend(q, k, v, mask))
        t = norm(f"{ear}{block}.output.LayerNorm", out + t, 1e-12)
    out = linear(f"{ear}output.dense", F.gelu(linear(f"{ear}intermediate.dense", t)))
    first = norm(f"{ear}output.LayerNorm", out + t, 1e-12)[:, 0]
    return (linear("mlp.layers.2", linear("mlp.layers.0", first))[:, 0] - 0.1672) / 1.0334


@pytest.fixture(scope="module")
def image_reward(clip: str, tmp_path_factory: pytest.TempPathFactory) -> ImageReward:
    folder = tmp_path_factory.mktemp("image-reward")
    torch.save(image_reward_state(), folder / "ImageReward.pt")
    return ImageReward(str(folder), tokenizer=clip)


def test_image_reward_follows_the_published_tensors(image_reward: ImageReward) -> None:
    images = pictures(2)
    ids = torch.zeros(2, 35, dtype=torch.long)
    ids[0, :4], ids[1, :4] = torch.tensor([5, 6, 8, 11]), torch.tensor([5, 7, 9, 11])  # "a red cat", "a green dog"
    expected = image_reward_by_hand(image_reward_state(), Pixels(16, 16)(images), ids, (ids != 0).long())
    score = image_reward(images, PROMPTS[:2])
    assert (score[0] - score[1]).abs() > 1e-2
    torch.testing.assert_close(score, expected, rtol=1e-3, atol=1e-3)


def test_an_image_reward_file_of_another_layout_is_refused(clip: str, open_clip_file: Path) -> None:
    with pytest.raises(UsageError, match=r"has no patch_embed\.proj\.weight"):
        ImageReward(str(open_clip_file), tokenizer=clip)(pictures(), PROMPTS)


# All of them ----------------------------------------------------------------------------------------------------


def test_gradients_reach_every_image_and_no_weight(
    clip: str, open_clip_file: Path, image_reward: ImageReward, tmp_path: Path
) -> None:
    torch.save(head_state("layers.", [12, 1], [0]), tmp_path / "head.pth")
    aesthetic = LaionAesthetic(clip, str(tmp_path / "head.pth"))
    scores = [PickScore(clip, clip), HPSv2(str(open_clip_file), processor=clip), image_reward, aesthetic]
    for score in scores:
        images = pictures()
        slope = gradient(score, images)
        assert (slope.abs().amax((1, 2, 3)) > 0).all(), score
        middle = images * 0.8 + 0.1  # away from the clamp
        slope = gradient(score, middle)
        step = 1e-3 * slope / slope.abs().amax((1, 2, 3), keepdim=True)
        rise = score(middle + step, PROMPTS) - score(middle - step, PROMPTS)
        assert rise == pytest.approx(2 * (slope * step).sum((1, 2, 3)), rel=5e-2), score
        models = [part for part in score.parts if isinstance(part, nn.Module)]
        assert not any(p.requires_grad for model in models for p in model.parameters())
        assert not any(model.training for model in models)
        assert Reward(score).differentiable


def test_half_precision_returns_float32(clip: str) -> None:
    images = pictures()
    half = PickScore(clip, clip, dtype=torch.bfloat16)(images, PROMPTS)
    assert half.dtype == torch.float32
    assert half == pytest.approx(PickScore(clip, clip)(images, PROMPTS), abs=0.2)


def test_nothing_is_loaded_before_the_first_call_and_nothing_travels(clip: str) -> None:
    score = PickScore(clip, clip)
    assert "parts" not in vars(score)
    expected = score(pictures(), PROMPTS)
    copy = pickle.loads(pickle.dumps(score))
    assert "parts" in vars(score) and "parts" not in vars(copy)
    assert torch.equal(copy(pictures(), PROMPTS), expected)


def test_bad_input_gets_one_line(clip: str) -> None:
    score = PickScore(clip, clip)
    with pytest.raises(ValueError, match="3 images but 1 prompts"):
        score(pictures(), ["a cat"])
    with pytest.raises(ValueError, match="prompt 1 is a list, not a text"):
        score(pictures(), ["a cat", [{"role": "user"}], "a dog"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"not in 0\.\.1"):
        score(pictures() * 255, PROMPTS)


def test_what_cannot_be_loaded_is_named(clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    missing = str(tmp_path / "missing")
    (tmp_path / "bad.pt").write_bytes(b"no tensors here")
    cases = [
        PickScore(missing, clip),
        HPSv2(missing, processor=clip),
        CLIPScore(missing),
        PickScore("no-such/model", clip),
    ]
    cases += [HPSv2(str(tmp_path), processor=clip), LaionAesthetic(clip, "no-such/head")]
    for score in cases:
        with pytest.raises(UsageError, match=r'^cannot load "') as caught:
            score(pictures(), PROMPTS)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=r"cannot read .*bad\.pt as plain tensors"):
        HPSv2(str(tmp_path / "bad.pt"), processor=clip)(pictures(), PROMPTS)


def test_a_file_that_wants_code_to_run_is_refused(clip: str, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"layers.0.weight": Evil()}, tmp_path / "head.pth")
    with pytest.raises(UsageError, match="as plain tensors"):
        LaionAesthetic(clip, str(tmp_path / "head.pth"))(pictures(), PROMPTS)
    assert not (tmp_path / "ran").exists()
