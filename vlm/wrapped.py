"""What an actor around a policy has in common: gates, checkpoints and forks see the policy alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Wrapped:
    """Base of actors that show, tune or label something while they train ``policy``."""

    policy: Any

    def fork(self, name: str) -> Any:
        """A frozen copy of the policy: what is compared answers by itself."""
        return self.policy.fork(name)

    def copy_from(self, other: Any, mix: float = 1.0) -> None:
        self.policy.copy_from(other, mix)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self.policy.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.policy.load_state_dict(state)
