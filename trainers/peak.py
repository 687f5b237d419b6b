"""Memory counted without having it: modules on fake tensors, and the most that was alive while something ran."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..types import Players, Rollout
from .contracts import Learner

GIB = 2**30
LARGE = 10**9
"""Weights above which layers are recomputed in the backward pass unless somebody says otherwise."""


def recomputed_share(module: nn.Module, share: float | None) -> float:
    """The share of a module's layers that are recomputed: what was asked, or all of a large one's and none else."""
    return float(sum(weight.numel() for weight in module.parameters()) > LARGE) if share is None else share


class Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it, every storage that a call makes is counted from its making to its end.

    Args:
        known: what is not counted, such as weights.

    Attributes:
        now, most: bytes alive, and the most of them at any time.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        cast(Any, super()).__init__()
        self.now: int = 0
        self.most: int = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.add(tensor)
        return out

    def add(self, tensor: Tensor) -> None:
        """Count what is there already."""
        storage = tensor.untyped_storage()
        name, size = storage._cdata, storage.nbytes()
        if name not in self._alive and name not in self._known:
            self._alive[name] = weakref.ref(storage, lambda _: self._gone(name, size))
            self.now += size
            self.most = max(self.most, self.now)

    def _gone(self, name: int, size: int) -> None:
        self._alive.pop(name, None)
        self.now -= size


def fake(module: nn.Module, frozen: torch.dtype | None = None) -> None:
    """Give a module on the meta device fake tensors of the CPU instead, within a FakeTensorMode.

    Args:
        frozen: the type of weights that are not trained; None leaves it.
    """
    known: dict[int, Tensor] = {}  # weights that are tied stay so
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for name, weight in table.items():
                if weight is None:
                    continue
                if id(weight) not in known:
                    trained, whole = weight.requires_grad, not weight.is_floating_point()
                    kind = weight.dtype if frozen is None or trained or whole else frozen
                    empty = torch.empty(weight.shape, device="cpu", dtype=kind)
                    known[id(weight)] = nn.Parameter(empty, trained) if isinstance(weight, nn.Parameter) else empty
                cast(dict[str, Any], table)[name] = known[id(weight)]


class PeakWatch(Learner):
    """A learner that learns nothing: the most that a GPU held in each round, "memory/peak_gib", and its share of what
    was planned, "memory/of_plan".

    Args:
        device: a GPU.
        planned: bytes; None was not planned.
    """

    players: Players = "all"

    def __init__(self, device: torch.device, planned: int | None) -> None:
        self.device, self.planned = device, planned

    def update(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        most = torch.cuda.max_memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        share = {} if self.planned is None else {"memory/of_plan": most / self.planned}
        return {"memory/peak_gib": most / GIB} | share


def free_memory(device: torch.device) -> int | None:
    """Bytes that a run may plan with: nine tenths of what is free on a GPU; None elsewhere."""
    return int(0.9 * torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else None


def peak_bytes(module: nn.Module, work: Callable[[], Tensor], dtype: torch.dtype | None = None) -> int:
    """The most bytes that are alive at once in a call and, where it has a graph, in its backward pass.

    What autograd and checkpoints keep is counted, and autocast's casts; the module's own weights and their gradients
    are not. Nor are what a kernel takes for itself and what an allocator loses to fragments.

    Args:
        module: whose weights these are. They may be real ones, or as :func:`fake` leaves them.
        work: the call, on fake tensors; where it is not under ``torch.no_grad`` what it returns is differentiated.
        dtype: of autocast; None computes in the weights' own.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    weights = [*module.parameters(), *module.buffers()]
    place = weights[0].device.type if weights else "cpu"
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        own = [*weights, *(mode.from_tensor(w) for w in weights)]  # autograd keeps some themselves, some as fakes
        # Tables that diffusers caches, such as Qwen-Image's rotations, would be fakes from then on.
        uncached = patch.object(torch.compiler, "is_exporting", lambda: True)
        freed = [cast(Any, w).register_post_accumulate_grad_hook(_forget) for w in weights if w.requires_grad]
        with uncached, Peak(own) as alive:
            with torch.autocast(place, dtype, enabled=dtype is not None):
                out = work()
            if out.requires_grad:
                torch.autograd.backward([out], [torch.ones_like(out)])
        for hook in freed:
            hook.remove()
    return int(alive.most)


def _forget(weight: Tensor) -> None:
    weight.grad = None
