"""What a computation takes at its peak, counted on tensors without data: any size of model in seconds, anywhere."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


def peak_bytes(module: nn.Module, work: Callable[[], Tensor], dtype: torch.dtype | None = None) -> int:
    """The most bytes that are alive at once in a call and, where it has a graph, in its backward pass.

    Every storage that an operation makes is counted until it is let go, with what autograd and checkpoints keep and
    with autocast's casts; the module's own weights and their gradients are not. Nor are what a kernel takes for
    itself and what an allocator loses to fragments.

    Args:
        module: whose weights these are. They may be real ones, or as :func:`without_data` leaves them.
        work: the call; where it is not under ``torch.no_grad`` what it returns is differentiated.
        dtype: of autocast; None computes in the weights' own.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    weights = [*module.parameters(), *module.buffers()]
    place = weights[0].device.type if weights else "cpu"
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        own = [*weights, *(fake.from_tensor(w) for w in weights)]  # autograd keeps some themselves, some as fakes
        # Tables that diffusers caches, such as Qwen-Image's rotations, would be fakes from then on.
        uncached = patch.object(torch.compiler, "is_exporting", lambda: True)
        freed = [cast(Any, w).register_post_accumulate_grad_hook(_forget) for w in weights if w.requires_grad]
        with uncached, _Alive(own) as alive:
            with torch.autocast(place, dtype, enabled=dtype is not None):
                out = work()
            if out.requires_grad:
                torch.autograd.backward([out], [torch.ones_like(out)])
        for hook in freed:
            hook.remove()
    return int(alive.most)


def without_data(module: nn.Module, frozen: torch.dtype) -> None:
    """Give a module on the meta device weights on the CPU that take no memory, in place, to be counted with.

    Args:
        frozen: the type of those that are not trained.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    known: dict[int, Tensor] = {}
    with FakeTensorMode():
        for part in module.modules():
            for table in (part._parameters, part._buffers):
                for name, weight in table.items():
                    if weight is None:
                        continue
                    if id(weight) not in known:
                        trained, fixed = weight.requires_grad, not weight.is_floating_point()
                        empty = torch.empty(weight.shape, dtype=weight.dtype if trained or fixed else frozen)
                        known[id(weight)] = nn.Parameter(empty, trained) if isinstance(weight, nn.Parameter) else empty
                    cast(dict[str, Any], table)[name] = known[id(weight)]


def _forget(weight: Tensor) -> None:
    weight.grad = None


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the storages that operations make; ``most`` bytes of them were alive at once."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now, self.most = 0, 0
        self.known = {_storage(tensor): None for tensor in known}
        self.alive: dict[int, Any] = {}

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = operation(*args, **(kwargs or {}))
        pytree.tree_map_only(Tensor, self._born, out)
        return out

    def _born(self, tensor: Tensor) -> None:
        place = _storage(tensor)
        if place in self.known or place in self.alive:
            return
        storage: Any = cast(Any, tensor).untyped_storage()
        size = int(storage.nbytes())

        def gone(_: Any) -> None:
            self.now -= size
            self.alive.pop(place, None)

        self.alive[place] = weakref.ref(storage, gone)
        self.now += size
        self.most = max(self.most, self.now)


def _storage(tensor: Tensor) -> int:
    return int(cast(Any, tensor).untyped_storage()._cdata)
