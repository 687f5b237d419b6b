"""Low-rank adapters (LoRA, arXiv 2106.09685) on any network, made by PEFT and saved as PEFT saves them.

The adapted weights are W + alpha / rank B A, with B = 0 at the start. Adapters are float32 whatever the network is:
steps of a small learning rate would be lost in half precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from ..errors import UsageError, unknown
from ..json_files import as_written, read_object
from .weights import is_adapter

if TYPE_CHECKING:
    from .policy import TorchPolicy

Policy = TypeVar("Policy", bound="TorchPolicy")
Targets = Sequence[str] | Literal["all-linear"]
NAME = "default"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""Before each name in PEFT's files, whose own model wraps the network twice."""


def add_lora(
    module: nn.Module, rank: int, targets: Targets = "all-linear", *, alpha: float | None = None, seed: int = 0
) -> list[nn.Parameter]:
    """LoRA on a network, which is frozen but for it; the network is changed in place, and computes the same at first.

    Args:
        targets: ends of names of layers, such as "q_proj" or "to_out.0"; "all-linear" takes every linear layer but a
            language model's head over its vocabulary, as PEFT does.
        alpha: None takes the rank, a factor of 1.
        seed: of A; the global random generators are left as they were.

    Returns:
        The trainable parameters.

    Raises:
        UsageError: a target that is no layer of the network, adapters twice, or a rank below 1.
    """
    from peft import LoraConfig

    if rank < 1:
        raise UsageError(f"a LoRA has a rank of at least 1, not {rank}")
    chosen = layers_for(module, targets)
    factor: Any = rank if alpha is None else alpha
    return _inject(module, LoraConfig(r=rank, lora_alpha=factor, target_modules=chosen), seed)


def layers_for(module: nn.Module, targets: Targets) -> list[str]:
    """What targets name in a network.

    Raises:
        UsageError: one that is no layer of it, none at all, or a network that has adapters already.
    """
    _check_bare(module)
    chosen = _linear(module) if targets == "all-linear" else list(targets)
    layers = [name for name, part in module.named_modules() if isinstance(part, nn.Linear | nn.Conv2d) and name]
    for target in chosen:
        if not any(ends_with(name, target) for name in layers):
            raise unknown("LoRA target", target, {_short(name) for name in layers})
    if not chosen:
        raise UsageError(f"{type(module).__name__} has no layer inside it for a LoRA to adapt")
    return chosen


def has_lora(module: nn.Module) -> bool:
    """Whether the network has adapters of ``add_lora`` or ``load_lora``."""
    return NAME in getattr(module, "peft_config", {})


def lora_config(module: nn.Module) -> Any:
    """PEFT's ``LoraConfig`` of the adapters.

    Raises:
        UsageError: a network without adapters.
    """
    if not has_lora(module):
        raise UsageError(f"{type(module).__name__} has no LoRA: call add_lora first")
    return cast(Any, module).peft_config[NAME]


def lora_state(module: nn.Module) -> dict[str, Tensor]:
    """The adapters' weights by PEFT's names (``….lora_A.weight``), detached; they share memory with the network."""
    from peft import get_peft_model_state_dict

    lora_config(module)
    state = get_peft_model_state_dict(module, adapter_name=NAME, save_embedding_layers=False)
    return {name: tensor.detach() for name, tensor in state.items()}


def save_lora(module: nn.Module, folder: str | Path, base: str = "") -> Path:
    """Write the adapters into a folder that ``PeftModel.from_pretrained`` and transformers' ``load_adapter`` read.

    Args:
        base: the folder or hub name of the network without them.
    """
    from safetensors.torch import save_file

    config, state = lora_config(module), lora_state(module)
    config.base_model_name_or_path = base or None
    config.save_pretrained(str(folder))
    tensors = {PREFIX + name: tensor.cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, Path(folder) / WEIGHTS, {"format": "pt"})
    return Path(folder)


def save_pretrained(model: Any, folder: str | Path) -> None:
    """Write a model of transformers: its adapters alone, where there are some, else all of it.

    Adapters name the folder of their model by its whole path, so that they are read from anywhere.
    """
    if has_lora(model):
        base = Path(model.name_or_path)
        save_lora(model, folder, str(base.resolve()) if model.name_or_path and base.is_dir() else model.name_or_path)
    else:
        model.save_pretrained(folder)


def load_lora(module: nn.Module, folder: str | Path) -> list[nn.Parameter]:
    """Adapters of a folder on a network that has none; they go on being trained, and nothing else does.

    Raises:
        UsageError: no adapters there, or those of another network.
    """
    from peft import LoraConfig, set_peft_model_state_dict
    from safetensors.torch import load_file

    config, weights = Path(folder) / CONFIG, Path(folder) / WEIGHTS
    if not config.is_file() or not weights.is_file():
        raise UsageError(f"{folder} holds no adapters: there are no {CONFIG} and {WEIGHTS}")
    if (kind := read_object(config).get("peft_type")) != "LORA":
        raise UsageError(f"{folder} holds adapters of PEFT's kind {kind}: a LoRA is wanted")
    state = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(weights).items()}
    foreign = f"the adapters in {folder} do not fit {type(module).__name__}"
    with as_written(foreign):
        trained = _inject(module, LoraConfig.from_pretrained(str(folder)), 0)
        result: Any = set_peft_model_state_dict(module, state, adapter_name=NAME)
    if result.unexpected_keys:
        raise UsageError(f"{foreign}: it has no {result.unexpected_keys[0]}")
    if lacking := sorted(name for name in result.missing_keys if is_adapter(name)):
        raise UsageError(f"{foreign}: they lack {lacking[0]}")
    return trained


def merge_lora(module: nn.Module) -> None:
    """Add the adapters to the weights that they adapt, in place; the network has none from then on.

    Raises:
        UsageError: a network without adapters, or weights that would not be finite.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not has_lora(module):
        raise UsageError(f"{type(module).__name__} has no adapters to merge: its weights are written whole as they are")
    for name, layer in list(module.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            try:
                layer.merge(safe_merge=True)
            except ValueError as error:
                raise UsageError(f"the adapters of {name} cannot be merged: {error}") from error
            module.set_submodule(name, layer.get_base_layer())
    delattr(module, "peft_config")


def ends_with(name: str, target: str) -> bool:
    """Whether a layer's name ends like a target, at a dot."""
    return name == target or name.endswith(f".{target}")


def _linear(module: nn.Module) -> list[str]:
    head = getattr(module, "get_output_embeddings", lambda: None)()
    return [name for name, part in module.named_modules() if isinstance(part, nn.Linear) and name and part is not head]


def _short(name: str) -> str:
    """The end of a name that says something: ``to_out.0`` rather than ``0``."""
    parts = name.split(".")
    return ".".join(parts[-2:] if parts[-1].isdigit() else parts[-1:])


def _inject(module: nn.Module, config: Any, seed: int) -> list[nn.Parameter]:
    from peft import inject_adapter_in_model

    _check_bare(module)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, module, adapter_name=NAME)
    return adapters_alone(module)


def adapters_alone(module: nn.Module) -> list[nn.Parameter]:
    """Let nothing of a network require gradients but its adapters, in float32; returns these."""
    trained = []
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(is_adapter(name))
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            trained.append(parameter)
    return trained


def _check_bare(module: nn.Module) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    if any(isinstance(part, BaseTunerLayer) for part in module.modules()):
        raise UsageError(
            f"{type(module).__name__} has a LoRA already: merge it first, a pipeline's with fuse_lora() and "
            "unload_lora_weights(), a model's with merge_and_unload(); or save it, and let a run start from it"
        )
