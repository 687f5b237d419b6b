"""What stands around a policy or its learner and is seen through by gates, checkpoints and forks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from ..types import Rollout


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


@dataclass(frozen=True)
class WithDropout:
    """A learner in training mode: imitation of few demonstrations needs dropout, and on-policy objectives forbid it."""

    policy: Any
    learner: Any
    sees_own_rollouts_only: ClassVar[bool] = True

    def update(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        import torch

        from ..trainers.randomness import seed_of

        self.policy.module.train()
        try:
            with torch.random.fork_rng():
                torch.manual_seed(seed_of("dropout", self.learner.optimisation.seed, self.learner.updates))
                metrics: dict[str, float] = self.learner.update(rollouts)
        finally:
            self.policy.module.eval()
        return metrics

    def repair(self, verdict: Any) -> dict[str, float]:
        metrics: dict[str, float] = self.learner.repair(verdict)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self.learner.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(state)
