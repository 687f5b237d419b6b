"""Low-rank adapters (LoRA, arXiv 2106.09685) on any robot policy, made by PEFT and saved as PEFT saves them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from ..errors import UsageError, unknown
from .chunk_policy import ChunkPolicy

NAME = "default"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Policy = TypeVar("Policy", bound=ChunkPolicy)


def with_lora(
    policy: Policy,
    rank: int,
    targets: Sequence[str] | Literal["all-linear"] = "all-linear",
    *,
    alpha: float | None = None,
    seed: int = 0,
) -> Policy:
    """The policy itself, frozen but for low-rank adapters, which change nothing yet.

    The added weights are W + alpha / rank B A, with B = 0 at the start. Forks share the frozen weights, so a fork taken
    now is a reference that costs no more than its adapters, and checkpoints hold the adapters alone.

    Args:
        targets: ends of names of linear layers, such as "q_proj" or "out"; "all-linear" takes every one.
        alpha: None takes the rank, a factor of 1.
        seed: of A; the global random generators are left as they were.

    Raises:
        UsageError: a target that is no linear layer of the policy, adapters twice, or a rank below 1.
    """
    from peft import LoraConfig

    if rank < 1:
        raise UsageError(f"a LoRA has a rank of at least 1, not {rank}")
    linear = [name for name, part in policy.module.named_modules() if isinstance(part, nn.Linear) and name]
    chosen = linear if targets == "all-linear" else list(targets)
    missing = [t for t in chosen if not any(name == t or name.endswith(f".{t}") for name in linear)]
    if missing:
        raise unknown("LoRA target", missing[0], linear)
    if not chosen:
        raise UsageError(f"{policy.name} has no linear layer inside its module for a LoRA to adapt")
    config = LoraConfig(r=rank, lora_alpha=cast(Any, rank if alpha is None else alpha), target_modules=chosen)
    return _inject(policy, config, seed)


def has_lora(module: nn.Module) -> bool:
    return bool(getattr(module, "peft_config", None))


def without_lora(policy: Policy, name: str) -> Policy:
    """A frozen policy with the adapters off, which shares the frozen weights: what ``with_lora`` began with."""
    _refuse_bare(policy)
    other = policy.fork(name)
    with torch.no_grad():
        for key, parameter in other.module.named_parameters():
            if "lora_B" in key:
                parameter.zero_()
    return other


def save_lora(policy: ChunkPolicy, folder: str | Path) -> None:
    """Write the adapters as PEFT does: ``adapter_config.json`` and ``adapter_model.safetensors``."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    _refuse_bare(policy)
    Path(folder).mkdir(parents=True, exist_ok=True)
    module = cast(Any, policy.module)
    module.peft_config[NAME].save_pretrained(str(folder))
    state: dict[str, Tensor] = get_peft_model_state_dict(module, adapter_name=NAME)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, Path(folder) / WEIGHTS)


def load_lora(policy: Policy, folder: str | Path) -> Policy:
    """The policy itself with the adapters of a folder on; it goes on training them.

    Raises:
        UsageError: no adapter folder, or adapters of another network.
    """
    from peft import LoraConfig, set_peft_model_state_dict
    from safetensors.torch import load_file

    place = Path(folder)
    if not (place / CONFIG).is_file() or not (place / WEIGHTS).is_file():
        raise UsageError(f"{place} holds no adapters: there are no {CONFIG} and {WEIGHTS}")
    state = load_file(place / WEIGHTS)
    try:
        if not has_lora(policy.module):
            _inject(policy, cast(LoraConfig, LoraConfig.from_pretrained(str(place))), 0)
        result: Any = set_peft_model_state_dict(policy.module, state, adapter_name=NAME)
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"the adapters in {place} do not fit {policy.name}: {str(error).splitlines()[0]}") from error
    if result.unexpected_keys:
        raise UsageError(f"the adapters in {place} do not fit {policy.name}: it has no {result.unexpected_keys[0]}")
    return policy


def _inject(policy: Policy, config: Any, seed: int) -> Policy:
    from peft import inject_adapter_in_model

    if has_lora(policy.module):
        raise UsageError(f"{policy.name} has a LoRA already")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, policy.module, adapter_name=NAME)
    for name, parameter in policy.module.named_parameters():
        parameter.requires_grad_("lora_" in name)
    policy.frozen = frozenset(name for name in policy.module.state_dict() if "lora_" not in name)
    return policy


def _refuse_bare(policy: ChunkPolicy) -> None:
    if not has_lora(policy.module):
        raise UsageError(f"{policy.name} has no LoRA: call with_lora first")
