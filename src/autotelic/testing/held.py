"""What autograd holds, counted where there is no GPU to ask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Held:
    """Bytes that autograd keeps for the way back while this is entered, and the most there were; weights left out."""

    def __init__(self, module: nn.Module) -> None:
        self.now = self.most = 0
        self.weights = {parameter.data_ptr() for parameter in module.parameters()}

    def __enter__(self) -> Held:
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda held: held.tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.hooks.__exit__(*error)

    def _pack(self, tensor: Tensor) -> Any:
        counted = self

        class Kept:
            def __init__(self) -> None:
                self.tensor, self.size = tensor.detach(), 0  # an output would keep its own graph alive
                if tensor.data_ptr() not in counted.weights:
                    self.size = tensor.numel() * tensor.element_size()
                counted.now += self.size
                counted.most = max(counted.most, counted.now)

            def __del__(self) -> None:
                counted.now -= self.size

        return Kept()
