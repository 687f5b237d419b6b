"""Demonstrations by scripted experts.

Only demonstrations that succeed are kept. That check reads the oracle, and is the one stated exception
to its seal: whoever records demonstrations knows which of them to keep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError, raised
from .simulator import Refusal, Simulator, View, observed, spec_of

RETRY_STRIDE = 1_000_000
"""What is added to a seed for each time that the expert failed on it; splits are a hundred times wider."""

ATTEMPTS = 20


@dataclass(frozen=True, eq=False)
class Demonstration:
    """One successful episode of an expert.

    Attributes:
        environment, instruction: what was done.
        seed: initial state; differs from the seed asked for by a multiple of RETRY_STRIDE after failures.
        observations: [N + 1, D] float32, before each step and after the last.
        actions: [N, A] float32 in [-1, 1].
        settle: expert steps at the end that were recorded after success first held; fewer than were asked for where the
            environment ended before.
        images: camera -> [N + 1, size, size, 3] uint8, taken with the observations, or None.
    """

    environment: str
    instruction: str
    seed: int
    observations: NDArray[np.float32]
    actions: NDArray[np.float32]
    settle: int
    images: Mapping[str, NDArray[np.uint8]] | None = None

    @property
    def frames(self) -> NDArray[np.uint8] | None:
        """[N + 1, size, size, 3] what the first camera saw: for judges that look at one film."""
        return first_film(self.images)


def first_film(images: Mapping[str, NDArray[np.uint8]] | None) -> NDArray[np.uint8] | None:
    """The pictures of the first camera, or None."""
    return next(iter(images.values()), None) if images else None


def stacked(frames: Sequence[Mapping[str, NDArray[np.uint8]]]) -> dict[str, NDArray[np.uint8]]:
    """Pictures [H, W, 3] by camera, one after another -> camera -> [N, H, W, 3]."""
    return {camera: np.stack([pictures[camera] for pictures in frames]) for camera in frames[0]}


def demonstrate(
    simulator: Simulator, environment: str, seed: int, *, horizon: int, settle: int, view: View | None = None
) -> tuple[Demonstration, list[int]]:
    """A demonstration from ``seed``, or from the first of its successors on which the expert succeeds.

    Args:
        horizon: steps within which success must first hold.
        settle: further steps to record after it.
        view: how to take pictures with each observation; None takes none.

    Returns:
        The demonstration, and the seeds on which the expert failed before.

    Raises:
        Refusal: the environment has no expert, or it failed (or the simulator did) on ATTEMPTS initial states.
    """
    failed: list[int] = []
    broke = ""
    for attempt in range(ATTEMPTS):
        tried = seed + attempt * RETRY_STRIDE
        try:
            demonstration = _attempt(simulator, environment, tried, horizon, settle, view)
        except Refusal:
            raise
        except UsageError as error:
            demonstration, broke = None, f"; the last time: {error}"
        except Exception as error:
            demonstration, broke = None, f"; the last time: {raised(error)}"
        if demonstration is not None:
            return demonstration, failed
        failed.append(tried)
    raise Refusal(
        f"{environment}: the scripted expert failed on {ATTEMPTS} initial states from seed {seed} on "
        f"within {horizon} steps{broke or '; raise the horizon'}"
    )


def _attempt(
    simulator: Simulator, environment: str, seed: int, horizon: int, settle: int, view: View | None
) -> Demonstration | None:
    simulator.reset(seed)
    act = simulator.expert()
    if act is None:
        raise Refusal(f"{environment} has no scripted expert: give its EnvSpec one, or demonstrations of yours")
    observations = [observed(simulator)]
    frames = [] if view is None else [simulator.frames(view)]
    actions: list[NDArray[np.float32]] = []
    remaining: int | None = None
    while remaining != 0 and (remaining is not None or len(actions) < horizon):
        actions.append(act())
        simulator.step(actions[-1][None])
        observations.append(observed(simulator))
        if view is not None:
            frames.append(simulator.frames(view))
        if remaining is not None:
            remaining -= 1
        elif simulator.success():
            remaining = settle
        if simulator.over:  # nothing moves any more, and no action has an effect
            break
    if remaining is None or not (spec_of(environment).latched or simulator.success()):
        return None
    settled = settle - remaining
    names = (environment, spec_of(environment).told(seed), seed)
    images = stacked(frames) if frames else None
    return Demonstration(*names, np.stack(observations), np.stack(actions), settled, images)
