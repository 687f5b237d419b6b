"""What progress models that are several small networks have in common: where they run, and what is saved of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import nn


class Ensemble:
    """Networks whose mean is an estimate, on one device.

    What is judged is brought to the device once for all of them, and the estimates come back.

    Attributes:
        members: the networks, in evaluation mode.
        device: where they are fitted and asked.
    """

    members: Sequence[nn.Module]
    device = torch.device("cpu")

    def to(self, device: torch.device | str) -> Self:
        """The same, on a device from now on."""
        self.device = torch.device(device)
        for member in self.members:
            member.to(self.device)
        return self

    def states(self) -> list[dict[str, Any]]:
        """The members' weights, which share memory with them."""
        return [dict(member.state_dict()) for member in self.members]

    def restored(self, network: nn.Module, weights: dict[str, Any]) -> nn.Module:
        """A member again from its weights."""
        network.load_state_dict(weights)
        return network.to(self.device).eval()
