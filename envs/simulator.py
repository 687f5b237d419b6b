"""What the pool asks of a simulator, and the names by which simulators are made.

A simulator is one physics instance. Episodes are saved states: a worker keeps one instance per
environment and takes turns between many episodes by :meth:`Simulator.save` and
:meth:`Simulator.restore`, so that a hundred episodes cost one instance's memory and one build.
"""

from __future__ import annotations

import difflib
import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from .. import plugins
from ..errors import UsageError
from .metaworld_tasks import OBSERVATION, PROPRIOCEPTION, TASKS

METAWORLD = "metaworld/"
"""Prefix of the MetaWorld tasks' names, as in "metaworld/drawer-open-v3"."""

METAWORLD_HORIZON = 500


Quality = Literal["fast", "plain", "full"]


@dataclass(frozen=True)
class View:
    """How pictures are taken.

    Attributes:
        size: pixels along a side.
        quality: "full" is MuJoCo's own default (4096-pixel shadow map, mirrored floor, 4x multisampling); "plain"
            leaves these three out; "fast" also draws coarse meshes. Physics never depends on it, and simulators
            without these settings ignore it.
        camera: MetaWorld: "shoulder", over the robot's right shoulder, or a camera of the model such as "corner2",
            right side up. Other environments have their one picture and ignore it.

    Raises:
        ValueError: a size below 1 or an unknown quality.
    """

    size: int = 64
    quality: Quality = "fast"
    camera: str = "shoulder"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"View: size {self.size} must be at least 1 pixel")
        if self.quality not in get_args(Quality):
            raise ValueError(f"View: quality {self.quality!r} must be one of {', '.join(get_args(Quality))}")


class Refusal(UsageError):
    """A simulator cannot do what was asked, and trying again would not help: the pool passes it on as it is."""


class RenderingUnavailable(Refusal):
    """This machine has no usable GL library."""


class Simulator(Protocol):
    """One physics instance.

    Attributes:
        observation_size: D, numbers in an observation.
        action_size: A, numbers in an action; each is meant to lie in [-1, 1].
    """

    observation_size: int
    action_size: int

    def reset(self, seed: int) -> None:
        """Go to the initial state that the seed alone decides, whatever happened before."""
        ...

    def save(self) -> Any:
        """Everything that decides what happens next; the caller must not change it."""
        ...

    def restore(self, state: Any) -> None:
        """Go back to a saved state; what follows is bit for bit what followed it the first time."""
        ...

    def observe(self) -> NDArray[np.float32]:
        """[D] the current observation, a fresh array."""
        ...

    def step(self, actions: NDArray[np.float32]) -> None:
        """Physics only for actions [C, A]: no observation, reward or success in between."""
        ...

    def success(self) -> bool:
        """Whether the current state solves the task. Oracle knowledge: the caller asks ``require_oracle`` first."""
        ...

    def frame(self, view: View) -> NDArray[np.uint8]:
        """[size, size, 3] the current state as an RGB picture, right side up."""
        ...

    def expert(self) -> Callable[[], NDArray[np.float32]] | None:
        """A scripted expert for the episode that starts now, or None.

        Called once per step, it reads the simulator and returns the next action [A] in [-1, 1].
        """
        ...

    def close(self) -> None:
        """Free the instance."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What an :class:`EnvSpec` judges success by.

    Attributes:
        observation: [D] flattened, float32.
        total_reward: sum of the environment's rewards since the reset.
        steps: environment steps since the reset.
        terminated: the environment said that the episode is over; it stays frozen from then on.
        info: the last step's info (the reset's before the first step).
    """

    observation: NDArray[np.float32]
    total_reward: float
    steps: int
    terminated: bool
    info: Mapping[str, Any]


@dataclass(frozen=True)
class EnvSpec:
    """How a Gymnasium environment joins.

    Every field must pickle, because specs travel to the worker processes: write functions with ``def``
    at the top of a module.

    Attributes:
        id: Gymnasium id, as in ``gymnasium.make(id)``.
        instruction: the sentence that a policy is told.
        horizon: environment steps after which an episode is usually cut, for :func:`horizon_of`.
        success: judges an :class:`Outcome`.
        kwargs: keyword arguments of ``gymnasium.make``.
        save, restore: copy the state out of the unwrapped environment and back into it. Without them its
            attributes are deep-copied, which environments made of plain Python and numpy allow.
        expert: (unwrapped environment, observation [D]) -> action [A], for demonstrations.
        layout: where things stand in a flattened observation, for :func:`layout_of`.
        proprioception: the part of an observation that a robot feels of itself, for :func:`proprioception_of`.
    """

    id: str
    instruction: str
    horizon: int
    success: Callable[[Outcome], bool]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    save: Callable[[Any], Any] | None = None
    restore: Callable[[Any, Any], None] | None = None
    expert: Callable[[Any, NDArray[np.float32]], NDArray[np.float32]] | None = None
    layout: Mapping[str, slice] = field(default_factory=dict)
    proprioception: slice = field(default_factory=lambda: slice(0, 0))

    def __post_init__(self) -> None:
        if (self.save is None) != (self.restore is None):
            raise ValueError(f"EnvSpec {self.id!r}: give both save and restore, or neither")


_SPECS: dict[str, EnvSpec] = plugins.table("environment")


def register(name: str, spec: EnvSpec) -> None:
    """Make an environment known by name, in this process and in pools built from now on.

    Raises:
        ValueError: the name belongs to MetaWorld, or the spec cannot travel to a worker process.
    """
    if name.startswith(METAWORLD):
        raise ValueError(f"environment name {name!r}: the prefix {METAWORLD!r} is taken, choose another")
    try:
        pickle.dumps(spec)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"environment {name!r}: its spec cannot be sent to worker processes ({error}); "
            "write its functions with def at the top of a module"
        ) from error
    plugins.register("environment", name, spec)


def specs(names: Iterable[str]) -> dict[str, EnvSpec]:
    """The registered specs among these names, to be sent to another process."""
    return {name: _SPECS[name] for name in names if name in _SPECS}


def check_name(name: str) -> None:
    """Refuse an unknown environment.

    Raises:
        ValueError: one line with the nearest valid names.
    """
    known = [*(METAWORLD + task for task in TASKS), *plugins.names("environment")]
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    near = near or difflib.get_close_matches(METAWORLD + name, known, n=3, cutoff=0.5)
    advice = f"did you mean {', '.join(near)}?" if near else f"known are {METAWORLD}<task> and registered specs"
    raise ValueError(f"unknown environment {name!r}: {advice}")


def instruction_of(name: str) -> str:
    """The sentence that a policy is told in this environment."""
    check_name(name)
    return _SPECS[name].instruction if name in _SPECS else TASKS[name.removeprefix(METAWORLD)]


def horizon_of(name: str) -> int:
    """Environment steps after which an episode is usually cut here: the spec's, or MetaWorld's 500."""
    check_name(name)
    return _SPECS[name].horizon if name in _SPECS else METAWORLD_HORIZON


def layout_of(name: str) -> Mapping[str, slice]:
    """Where things stand in an observation of this environment: the spec's layout, or MetaWorld's."""
    check_name(name)
    return _SPECS[name].layout if name in _SPECS else OBSERVATION


def proprioception_of(name: str) -> slice:
    """The part of an observation that a robot feels of itself: the spec's, or MetaWorld's hand and gripper."""
    check_name(name)
    return _SPECS[name].proprioception if name in _SPECS else PROPRIOCEPTION


def make_simulator(name: str) -> Simulator:
    """Build the physics instance of "metaworld/<task>" or of a registered spec.

    Raises:
        ValueError: unknown name; the message holds the nearest valid ones.
    """
    check_name(name)
    if name in _SPECS:
        from .gym_simulator import GymSimulator

        return GymSimulator(_SPECS[name])
    from .metaworld import MetaWorldSimulator

    return MetaWorldSimulator(name.removeprefix(METAWORLD))
