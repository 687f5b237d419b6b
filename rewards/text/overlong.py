"""What an answer loses that comes near the limit of its length."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import UsageError
from ...types import Rollout


class Overlong:
    """DAPO's soft overlong punishment (arXiv:2503.14476, eq. 13): 0 up to ``longest - buffer`` tokens, then falling in
    a straight line to ``-penalty`` at ``longest``. Checked against verl's reward manager (003364bc, by reading), which
    goes on falling where an answer is longer than the limit; here, as in the paper, it does not.

    Args:
        longest: most tokens of an answer.
        buffer: over how many of the last ones it falls.
        penalty: what an answer of ``longest`` tokens loses.

    Raises:
        UsageError: the buffer is longer than an answer, or empty.
    """

    families = frozenset({"length"})

    def __init__(self, longest: int, buffer: int, penalty: float = 1.0) -> None:
        if not 0 < buffer <= longest:
            raise UsageError(f"--overlong-buffer is 1 to the {longest} tokens of an answer, not {buffer}")
        self.longest, self.buffer, self.penalty = longest, buffer, penalty

    def __call__(self, rollouts: Sequence[Rollout], **columns: object) -> list[float]:
        """One number of 0 or less per answer, by the tokens that the policy wrote, its end among them."""
        beyond = (int(rollout.mask.sum()) - (self.longest - self.buffer) for rollout in rollouts)
        return [-self.penalty * min(max(over, 0), self.buffer) / self.buffer for over in beyond]
