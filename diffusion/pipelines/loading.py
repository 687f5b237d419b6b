"""Pipelines from folders and the hub, and the adapters of their classes."""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from ...errors import UsageError
from ...json_files import read_object
from ...plugins import named, names
from .base import PipelineAdapter

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

logger = logging.getLogger(__name__)

OWN_PIPELINES: dict[str, str] = {"ShapesPipeline": "autotelic.diffusion.small.shapes_pipeline"}
"""Pipeline classes of this project: class name -> module. ``load`` uses them where a model_index.json names them."""


def adapter_for(pipeline: DiffusionPipeline, **options: Any) -> PipelineAdapter:
    """The adapter of a pipeline: what is registered as "pipeline" under the name of its class, or of a base of it.

    Args:
        options: of ``PipelineAdapter`` (height, width, guidance, negative_prompt) and of the family's adapter.

    Raises:
        UsageError: a pipeline class without an adapter; a part that is missing.
    """
    kind, parts = _kind(type(pipeline)), cast(Any, pipeline).components
    _check_parts(kind, type(pipeline).__name__, [name for name, part in parts.items() if part is not None])
    return _adapted(kind, pipeline, options)


def preview(name_or_path: str | Path, **options: Any) -> PipelineAdapter | None:
    """The adapter of a pipeline whose weights are not read, or fetched, yet: its networks are shapes without values.

    All that configs can tell is refused here as ``adapter_for`` would refuse it; sizes, schedulers and targets of a
    LoRA can be tried on what is returned.

    Returns:
        None where the class is one's own, or cannot be made of configs alone.

    Raises:
        UsageError: as ``load`` and ``adapter_for``.
    """
    source, index = _index(name_or_path)
    pipeline_class, name = _class_of(source, index), str(index["_class_name"])
    kind = _kind(pipeline_class)
    _check_parts(kind, name, [part for part, value in index.items() if isinstance(value, list) and value[-1]])
    if not kind.__module__.startswith(__package__.partition(".")[0] + "."):
        return None
    try:
        skeleton = _skeleton(source, index, pipeline_class)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, NotImplementedError) as error:
        logger.debug("%s cannot be looked at before it is loaded: %s", name_or_path, error)
        return None
    return _adapted(kind, skeleton, options)


def text_encoder_weights(name_or_path: str | Path) -> int:
    """How many weights the text encoders of a pipeline have, by their configurations."""
    import transformers

    source, index = _index(name_or_path)
    count = 0
    for name, value in index.items():
        if name.startswith("text_encoder") and isinstance(value, list) and value[-1]:
            kind = getattr(transformers, str(value[1]))
            with torch.device("meta"):
                encoder = kind(kind.config_class.from_pretrained(source, subfolder=name))
            count += sum(weight.numel() for weight in encoder.parameters())
    return count


def check_dtype(dtype: torch.dtype | None, place: torch.device) -> None:
    """Refuse float16 on the CPU, with a UsageError."""
    if dtype == torch.float16 and place.type == "cpu":
        raise UsageError("float16 does not train on the CPU: use float32, or bfloat16 to save memory")


def load(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    exact: bool = False,
    **options: Any,
) -> DiffusionPipeline:
    """A pipeline from a folder or from the hub, on a device.

    Weights are read from safetensors alone, and no code that comes with them is run, unless ``options`` say
    otherwise.

    Args:
        name_or_path: a folder with a model_index.json, or a name on the hub such as
            stable-diffusion-v1-5/stable-diffusion-v1-5.
        dtype: None takes bfloat16 on a CUDA device and float32 elsewhere.
        device: None takes the GPU if there is one.
        exact: the denoiser in float32, as one that is trained whole has to be.
        options: of ``DiffusionPipeline.from_pretrained``.

    Raises:
        UsageError: float16 on the CPU; a path that holds no pipeline, a broken one, or one of an unknown class; a
            name that cannot be fetched.
    """
    import diffusers

    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    check_dtype(dtype, place)
    chosen = dtype or (torch.bfloat16 if place.type == "cuda" else torch.float32)
    kind: Any = diffusers.DiffusionPipeline
    source = str(name_or_path)
    settings: dict[str, Any] = {"dtype": chosen, "use_safetensors": True}
    if "custom_pipeline" not in options:
        source, index = _index(name_or_path)
        kind = _class_of(source, index)
        settings |= dict.fromkeys(_left_out(kind, index))
    if exact:
        settings["dtype"] = {"default": chosen, _kind(kind).denoiser_name: torch.float32}
    try:
        pipeline = kind.from_pretrained(source, **settings | options)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        told = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"cannot load the pipeline {name_or_path}: {told}") from error
    return cast("DiffusionPipeline", pipeline if "device_map" in options else pipeline.to(place))


def _kind(pipeline_class: type) -> Any:
    known = names("pipeline")
    for base in pipeline_class.__mro__:
        if base.__name__ in known:
            return named("pipeline", base.__name__)
    raise UsageError(
        f"no adapter for {pipeline_class.__name__}: there is one for {', '.join(known)}; for another, derive from "
        'autotelic.diffusion.pipelines.PipelineAdapter and call autotelic.plugins.register("pipeline", CLASS, adapter)'
    )


def _adapted(kind: Any, pipeline: Any, options: Mapping[str, Any]) -> PipelineAdapter:
    if "num_frames" in options and not kind.video:
        raise UsageError(f"{type(pipeline).__name__} draws pictures, which have no frames: leave --num-frames out")
    made: PipelineAdapter = kind(pipeline, **options)
    return made


def _check_parts(kind: Any, name: str, present: Collection[str]) -> None:
    if lacking := [part for part in (kind.denoiser_name, *kind.needs) if part not in present]:
        raise UsageError(f"this {name} has no {lacking[0]}: take one that is complete")


def _index(name_or_path: str | Path) -> tuple[str, dict[str, Any]]:
    """Where a pipeline is, and what its model_index.json says.

    Raises:
        UsageError: none is there, or it is broken.
    """
    import diffusers

    source = Path(name_or_path).expanduser()
    here = source.exists() or source.is_absolute() or len(source.parts) > 2 or str(name_or_path).startswith((".", "~"))
    if not here:
        try:
            return str(name_or_path), dict(diffusers.DiffusionPipeline.load_config(str(name_or_path)))
        except (OSError, ValueError) as error:
            told = " ".join(str(error).split()) or type(error).__name__
            raise UsageError(f"cannot load the pipeline {name_or_path}: {told}") from error
    if source.is_file():
        raise UsageError(
            f"{source} is one file: make a folder of it with "
            f"StableDiffusionPipeline.from_single_file(file).save_pretrained(folder), or the class that fits"
        )
    file = source / "model_index.json"
    if not file.is_file():
        what = "has no model_index.json" if source.is_dir() else "does not exist"
        raise UsageError(f"{source} {what}: a pipeline is saved with pipeline.save_pretrained(folder)")
    return str(source), read_object(file, "_class_name")


def _class_of(source: str, index: Mapping[str, Any]) -> Any:
    import diffusers

    name = str(index["_class_name"])
    if name in OWN_PIPELINES:
        return getattr(importlib.import_module(OWN_PIPELINES[name]), name)
    found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        raise UsageError(f"{source} is of the class {name}, which diffusers {diffusers.__version__} does not have")
    return found


def _left_out(kind: Any, index: Mapping[str, Any]) -> list[str]:
    """Text encoders without which a pipeline was saved; diffusers wants to be told so."""
    wanted = inspect.signature(kind.__init__).parameters.values()
    texts = [p.name for p in wanted if p.name.startswith(("text_encoder", "tokenizer")) and p.default is p.empty]
    return [name for name in texts if not (index.get(name) or [None])[-1]]


def _skeleton(source: str, index: Mapping[str, Any], kind: Any) -> Any:
    """A pipeline of real schedulers, and networks without weights; text encoders are left out."""
    import diffusers

    parts: dict[str, Any] = {}
    for name in inspect.signature(kind.__init__).parameters:
        value = index.get(name)
        if not isinstance(value, list):
            if name in index:
                parts[name] = value
            elif name.startswith(("text_encoder", "tokenizer")):
                parts[name] = None
            continue
        found = getattr(diffusers, str(value[1]), None) if value[0] == "diffusers" else None
        parts[name] = None
        if found is not None:
            with torch.device("meta" if issubclass(found, nn.Module) else "cpu"):
                parts[name] = found.from_config(found.load_config(source, subfolder=name))
    if "requires_safety_checker" in parts:
        parts["requires_safety_checker"] = False
    parts.pop("self", None)
    return kind(**parts)
