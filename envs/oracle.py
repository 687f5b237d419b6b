"""The seal on the oracle: what the simulator knows and a learner must not.

Success, the dense reward and the end of an episode are facts that only the simulator has. A run that
claims to learn without them wraps its training in :func:`sealed`; every reader of such a fact calls
:func:`require_oracle` first, so a forgotten peek fails loudly instead of quietly helping.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import UsageError

_SEALS: list[str] = []


class OracleSealed(UsageError, RuntimeError):
    """Something asked for the oracle while it was sealed."""


@contextmanager
def sealed(why: str) -> Iterator[None]:
    """Nobody in this process may read success, dense reward or end of episode inside this block.

    Seals nest; the oracle opens again when the outermost block ends. Threads share the seal.

    Args:
        why: who sealed it, for the error message ("evolve_vla trains without the oracle").
    """
    _SEALS.append(why)
    try:
        yield
    finally:
        _SEALS.pop()


def require_oracle(what: str) -> None:
    """Declare that ``what`` is about to be read.

    Raises:
        OracleSealed: inside a :func:`sealed` block.
    """
    if _SEALS:
        raise OracleSealed(f"{what} is oracle knowledge, sealed because {_SEALS[-1]}; read it in evaluation only")
