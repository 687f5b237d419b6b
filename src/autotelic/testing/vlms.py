"""Tiny models of the real transformers classes with their processors, made offline from parts, with random weights.

A word is a token. ``vlm(family)`` gives a model that takes images, ``text(family)`` one that does not; both with what
reads questions for them.
"""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

# fmt: off
WORDS = [
    "what", "is", "red", "blue", "green", "circle", "square", "how", "many", "in", "the", "picture", "left",
    "right", "of", "user", "assistant", "yes", "no", "one", "two", "three", "four", "five", "six", "seven", "eight",
    "nine", "zero", "a", "dog", "cat", "?", ".", ":",
]
# fmt: on
SPECIAL = {
    "qwen2_vl": ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    "smolvlm": ("<image>", "<fake_token_around_image>", "<global-img>", "<row_1_col_1>", "<end_of_utterance>"),
    "llava": ("<image>",),
    "internvl": ("<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
    "gemma3": ("<start_of_image>", "<end_of_image>", "<image_soft_token>", "<end_of_turn>"),
}
SPECIAL |= {"qwen2_5_vl": SPECIAL["qwen2_vl"], "qwen3_vl": SPECIAL["qwen2_vl"], "idefics3": SPECIAL["smolvlm"]}
SHOWN = {
    "qwen2_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "smolvlm": "<image>",
    "llava": "<image>",
    "internvl": "<IMG_CONTEXT>",
    "gemma3": "<start_of_image>",
}
SHOWN |= {"qwen2_5_vl": SHOWN["qwen2_vl"], "qwen3_vl": SHOWN["qwen2_vl"], "idefics3": SHOWN["smolvlm"]}
VLMS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "idefics3", "llava", "internvl")
"""Those that need no renderer of one's own; ``vlm("gemma3")`` does."""
TEXTS = ("llama", "qwen2")


def tokenizer(special: tuple[str, ...] = (), **named: Any) -> PreTrainedTokenizerFast:
    """Words split at spaces; ``special`` tokens are whole wherever they stand."""
    vocabulary = ["<pad>", "<eos>", "<unk>", *WORDS]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    made = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left", **named
    )
    made.add_special_tokens({"additional_special_tokens": list(special)})  # type: ignore[dict-item]
    return made


def template(shown: str = "", end: str = "<eos>") -> str:
    """A chat template in the way of the published ones; without ``shown`` it reads text alone."""
    block = f"{{% if b['type'] == 'image' %}}{shown} {{% else %}}{{{{ b['text'] }}}}{{% endif %}}"
    content = "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for b in m['content'] %}"
    content += block + "{% endfor %}{% endif %}"
    return (
        "{% for m in messages %}{{ m['role'] }} : "
        + content
        + "{% if m['role'] == 'assistant' %}"
        + end
        + "{% endif %} "
        "{% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"
    )


def vlm(family: str, seed: int = 0, **changes: Any) -> tuple[Any, Any]:
    """A model and its processor; images of 32 x 32 pixels make a few tokens."""
    processor = PROCESSORS[family](family)
    torch.manual_seed(seed)
    model = MODELS[family](processor, **changes).eval()
    if family == "openvla":
        from ..vla.prismatic import PrismaticProcessor

        processor = PrismaticProcessor.for_model(model, processor)
    return model, processor


def text(family: str = "llama", seed: int = 0, **changes: Any) -> tuple[Any, Any]:
    """A causal model and its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    reader = tokenizer()
    reader.chat_template = template()
    torch.manual_seed(seed)
    kinds: dict[str, Any] = {"llama": (LlamaForCausalLM, LlamaConfig), "qwen2": (Qwen2ForCausalLM, Qwen2Config)}
    model, config = kinds[family]
    return model(config(**(text_sizes(reader) | changes))).eval(), reader


def text_sizes(reader: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(reader),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": reader.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": reader.eos_token_id,
        "initializer_range": 0.3,
    }


# --- processors -------------------------------------------------------------------------------------


def _qwen_processor(family: str) -> Any:
    from transformers import (
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    kinds = {"qwen2_vl": Qwen2VLProcessor, "qwen2_5_vl": Qwen2_5_VLProcessor, "qwen3_vl": Qwen3VLProcessor}
    sizes: dict[str, Any] = {
        "patch_size": 8,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": 16 * 16, "longest_edge": 256 * 256},
    }
    video = Qwen3VLVideoProcessor if family == "qwen3_vl" else Qwen2VLVideoProcessor
    return kinds[family](
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=tokenizer(SPECIAL[family]),
        video_processor=video(**sizes),
        chat_template=template(SHOWN[family]),
    )


def _idefics_processor(family: str) -> Any:
    from transformers import (
        Idefics3ImageProcessor,
        Idefics3Processor,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    sizes: dict[str, Any] = {
        "size": {"longest_edge": 32},
        "max_image_size": {"longest_edge": 32},
        "do_image_splitting": False,
    }
    shared: dict[str, Any] = {
        "tokenizer": tokenizer(SPECIAL[family]),
        "image_seq_len": 4,
        "chat_template": template(SHOWN[family]),
    }
    if family == "idefics3":
        return Idefics3Processor(Idefics3ImageProcessor(**sizes), **shared)
    video = SmolVLMVideoProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 32})
    return SmolVLMProcessor(image_processor=SmolVLMImageProcessor(**sizes), video_processor=video, **shared)


def _llava_processor(family: str) -> Any:
    from transformers import CLIPImageProcessor, LlavaProcessor

    size = {"height": 32, "width": 32}
    return LlavaProcessor(
        CLIPImageProcessor(size=size, crop_size=size),
        tokenizer(SPECIAL[family]),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template(SHOWN[family]),
    )


def _internvl_processor(family: str) -> Any:
    from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor

    size = {"height": 32, "width": 32}
    names = ("start_image_token", "end_image_token", "context_image_token", "video_token")
    reader = tokenizer(extra_special_tokens=dict(zip(names, SPECIAL[family], strict=True)))
    return InternVLProcessor(
        GotOcr2ImageProcessor(size=size, crop_to_patches=False),
        reader,
        InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=template(SHOWN[family]),
    )


def _gemma3_processor(family: str) -> Any:
    from transformers import Gemma3ImageProcessor, Gemma3Processor

    names = ("boi_token", "eoi_token", "image_token", "end_of_turn_token")
    return Gemma3Processor(
        Gemma3ImageProcessor(size={"height": 32, "width": 32}, do_pan_and_scan=False),
        tokenizer(extra_special_tokens=dict(zip(names, SPECIAL[family], strict=True))),
        chat_template=template(SHOWN[family], end="<end_of_turn>"),
        image_seq_length=4,
    )


PROCESSORS = {
    "qwen2_vl": _qwen_processor,
    "qwen2_5_vl": _qwen_processor,
    "qwen3_vl": _qwen_processor,
    "smolvlm": _idefics_processor,
    "idefics3": _idefics_processor,
    "llava": _llava_processor,
    "internvl": _internvl_processor,
    "gemma3": _gemma3_processor,
    "openvla": lambda family: tokenizer(("<image>",)),  # the processor follows from the model
}


# --- models -----------------------------------------------------------------------------------------


def _qwen_ids(reader: Any) -> dict[str, int]:
    start, end, image, video = (reader.convert_tokens_to_ids(token) for token in SPECIAL["qwen2_vl"])
    return {
        "vision_start_token_id": start,
        "vision_end_token_id": end,
        "image_token_id": image,
        "video_token_id": video,
    }


def _qwen2_vl(processor: Any, **changes: Any) -> Any:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    sizes = text_sizes(processor.tokenizer) | {"rope_parameters": rope}
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 8}
    config = Qwen2VLConfig(
        text_config=sizes | changes, vision_config=vision | {"initializer_range": 0.3}, **_qwen_ids(processor.tokenizer)
    )
    return Qwen2VLForConditionalGeneration(config)


def _qwen2_5_vl(processor: Any, **changes: Any) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    sizes = text_sizes(processor.tokenizer) | {"rope_parameters": rope}
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 8,
        "out_hidden_size": 32,
        "window_size": 32,
        "fullatt_block_indexes": [1],
        "initializer_range": 0.3,
    }
    config = Qwen2_5_VLConfig(text_config=sizes | changes, vision_config=vision, **_qwen_ids(processor.tokenizer))
    return Qwen2_5_VLForConditionalGeneration(config)


def _qwen3_vl(processor: Any, **changes: Any) -> Any:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    sizes = text_sizes(processor.tokenizer) | {"rope_parameters": rope, "head_dim": 8}
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 8,
        "out_hidden_size": 32,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
        "initializer_range": 0.3,
    }
    config = Qwen3VLConfig(text_config=sizes | changes, vision_config=vision, **_qwen_ids(processor.tokenizer))
    return Qwen3VLForConditionalGeneration(config)


def _idefics(processor: Any, **changes: Any) -> Any:
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3Processor,
        LlamaConfig,
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
    )

    kinds: tuple[Any, Any] = (SmolVLMForConditionalGeneration, SmolVLMConfig)
    if isinstance(processor, Idefics3Processor):
        kinds = (Idefics3ForConditionalGeneration, Idefics3Config)
    model, config = kinds
    sizes = text_sizes(processor.tokenizer)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 8,
        "image_size": 32,
        "initializer_range": 0.3,
    }
    return model(
        config(
            text_config=LlamaConfig(**(sizes | changes)),
            vision_config=vision,
            scale_factor=2,
            image_token_id=processor.tokenizer.convert_tokens_to_ids("<image>"),
            pad_token_id=sizes["pad_token_id"],
        )
    )


def _llava(processor: Any, **changes: Any) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=32,
        initializer_range=0.3,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**(text_sizes(processor.tokenizer) | changes)),
        image_token_id=processor.tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        image_seq_length=16,
    )
    return LlavaForConditionalGeneration(config)


def _internvl(processor: Any, **changes: Any) -> Any:
    from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, Qwen2Config

    vision = InternVLVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=[32, 32],
        patch_size=[8, 8],
        initializer_range=0.3,
    )
    config = InternVLConfig(
        vision_config=vision,
        text_config=Qwen2Config(**(text_sizes(processor.tokenizer) | changes)),
        image_token_id=processor.tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    return InternVLForConditionalGeneration(config)


def _gemma3(processor: Any, **changes: Any) -> Any:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "initializer_range": 0.3,
    }
    start, end, image, _ = (processor.tokenizer.convert_tokens_to_ids(token) for token in SPECIAL["gemma3"])
    config = Gemma3Config(
        text_config=text_sizes(processor.tokenizer) | {"head_dim": 8, "query_pre_attn_scalar": 8} | changes,
        vision_config=vision,
        mm_tokens_per_image=4,
        boi_token_index=start,
        eoi_token_index=end,
        image_token_index=image,
        initializer_range=0.3,
    )
    model = Gemma3ForConditionalGeneration(config)
    projector = model.model.multi_modal_projector.mm_input_projection_weight
    torch.nn.init.normal_(projector, std=0.3)  # transformers starts it at 0: every picture would be alike
    return model


def _openvla(processor: Any, **changes: Any) -> Any:
    from ..vla.prismatic import TOWERS, PrismaticConfig, PrismaticVLA

    tower = {"depth": 3, "embed_dim": 32, "num_heads": 2, "patch_size": 8}
    config = PrismaticConfig(
        timm_model_ids=list(TOWERS),
        image_sizes=[32, 32],
        tower_options=[tower, tower],
        text_config={"model_type": "llama"} | text_sizes(processor) | changes,
        pad_to_multiple_of=0,
        image_token_id=processor.convert_tokens_to_ids("<image>"),
    )
    model = PrismaticVLA(config)
    for part in (*model.projector.parameters(), *model.vision_backbone.parameters()):
        if part.ndim > 1:
            torch.nn.init.normal_(part, std=0.3)  # so that pictures differ
    return model


MODELS = {
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "smolvlm": _idefics,
    "idefics3": _idefics,
    "llava": _llava,
    "internvl": _internvl,
    "gemma3": _gemma3,
    "openvla": _openvla,
}
