"""What the pool asks of a simulator, and the names by which simulators are made.

A simulator is one physics instance. Episodes are saved states: a worker keeps one instance per
environment and takes turns between many episodes by :meth:`Simulator.save` and
:meth:`Simulator.restore`, so that a hundred episodes cost one instance's memory and one build.
"""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from .. import plugins
from ..errors import UsageError, unknown
from .gymnasium_ids import knowing

STATE, IMAGES, ACTION = "observation.state", "observation.images.", "action"
"""LeRobot's names of features: numbers, pictures (a camera's name follows), and what a policy answers."""

DRAWN = "main"
"""The camera of an environment that has one picture and no name for it."""

POSITIONS = ("hand", "object", "second", "goal")
"""Parts of a layout that are positions, which relations compare: all of one number of axes."""

SHOULDER = "shoulder"
"""A camera over the right shoulder of a robot at the table, which MetaWorld's scenes have besides their model's."""

GEOM_GROUPS = 6
"""Groups of geoms that MuJoCo has."""

Quality = Literal["fast", "plain", "full"]


@dataclass(frozen=True)
class View:
    """How pictures are taken.

    Attributes:
        size: pixels along a side.
        quality: "full" is MuJoCo's own default (4096-pixel shadow map, mirrored floor, 4x multisampling); "plain"
            leaves these three out; "fast" also draws coarse meshes. Physics never depends on it, and simulators
            without these settings ignore it.
        cameras: by name; none takes the environment's own, which are all its image observations or else its one
            picture. Scenes of MuJoCo have "shoulder", over the robot's right shoulder, and the cameras of their model,
            right side up.

    Raises:
        ValueError: a size below 1, an unknown quality, or cameras that are no names or twice the same.
    """

    size: int = 64
    quality: Quality = "fast"
    cameras: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise UsageError(f"View: size {self.size!r} must be at least 1 pixel, one whole number for both sides")
        if self.quality not in get_args(Quality):
            raise ValueError(f"View: quality {self.quality!r} must be one of {', '.join(get_args(Quality))}")
        if isinstance(self.cameras, str) or len(set(self.cameras)) < len(self.cameras):
            raise ValueError(f"View: cameras {self.cameras!r} must be different names, as in ('front', 'wrist')")
        object.__setattr__(self, "cameras", tuple(self.cameras))  # settings that were read from JSON hold a list


@dataclass(frozen=True)
class Feature:
    """One thing that is observed, or the action.

    Attributes:
        shape: of its array; pictures are [H, W, 3]. Empty where a picture is drawn in any size.
        low, high: bounds in the robot's own units, numbers or one per entry; None is as the environment says.
    """

    shape: tuple[int, ...] = ()
    low: float | tuple[float, ...] | None = None
    high: float | tuple[float, ...] | None = None


class Refusal(UsageError):
    """A simulator cannot do what was asked, and trying again would not help: the pool passes it on as it is."""


class RenderingUnavailable(Refusal):
    """This machine has no usable GL library."""


class EnvironmentFault(UsageError):
    """An episode cannot go on; the text says at which step, and why. A pool ends it as failed and goes on."""


def check_actions(name: str, actions: NDArray[Any], size: int) -> None:
    """Refuse actions that no environment should be given.

    Raises:
        UsageError: not [C, A], or NaN or infinity.
    """
    if actions.ndim != 2 or actions.shape[1] != size:
        raise UsageError(f"{name} was given actions of shape {list(actions.shape)}; expected are [C, {size}]")
    if not np.isfinite(actions).all():
        raise UsageError(f"{name} was given an action with NaN or infinity")


class Simulator(ABC):
    """One physics instance.

    Attributes:
        observation_size: D, numbers in an observation.
        action_size: A, numbers in an action; each is meant to lie in [-1, 1].
        cameras: whose pictures are taken where a view names none.
        total_reward: of the episode so far, where the environment has one of its own; only a check compares it.
        instance_size: bytes that another instance would take, 0 where nobody knows.
        layout: where things stand in an observation, as far as the simulator or its spec says; see ``EnvSpec.layout``.
    """

    observation_size: int
    action_size: int
    cameras: tuple[str, ...] = (DRAWN,)
    total_reward: float = 0.0
    instance_size: int = 0
    layout: Mapping[str, slice] = {}

    @property
    def features(self) -> Mapping[str, Feature]:
        """What is observed and acted with, by LeRobot's names."""
        numbers = {STATE: Feature((self.observation_size,)), ACTION: Feature((self.action_size,), -1, 1)}
        return numbers | {IMAGES + camera: Feature() for camera in self.cameras}

    @abstractmethod
    def reset(self, seed: int) -> None:
        """Go to the initial state that the seed alone decides, whatever happened before."""

    @abstractmethod
    def save(self) -> Any:
        """Everything that decides what happens next; the caller must not change it."""

    @abstractmethod
    def restore(self, state: Any) -> None:
        """Go back to a saved state; what follows is bit for bit what followed it the first time."""

    @abstractmethod
    def observe(self) -> NDArray[np.float32]:
        """[D] the current observation, a fresh array."""

    @abstractmethod
    def step(self, actions: NDArray[np.float32]) -> None:
        """Physics only for actions [C, A]: no observation, reward or success in between."""

    def decode(self, actions: NDArray[np.float32]) -> Any:
        """[n, C, A] finite actions of many episodes as ``execute`` takes them, n chunks."""
        return actions

    def execute(self, chunk: Any) -> None:
        """``step``, with what ``decode`` made of a chunk."""
        self.step(chunk)

    @abstractmethod
    def success(self) -> bool:
        """Whether the current state solves the task. Oracle knowledge: the caller asks ``require_oracle`` first."""

    def reward(self) -> float:
        """What the last chunk of steps earned, or the state at its end, as the environment has it. Oracle knowledge."""
        raise Refusal(f"{type(self).__name__} has no reward of its own")

    @property
    def over(self) -> bool:
        """Whether the episode has ended and nothing that is done changes it any more."""
        return False

    @property
    def terminated(self) -> bool:
        """Whether it has ended for good, so that no state follows: Gymnasium's terminated, and not truncated."""
        return False

    def frame(self, view: View, camera: str = "") -> NDArray[np.uint8]:
        """[size, size, 3] the current state as an RGB picture, right side up.

        Args:
            camera: whose picture; none takes the view's first camera, or the simulator's.
        """
        raise Refusal(f"{type(self).__name__} has no pictures")

    def frames(self, view: View) -> dict[str, NDArray[np.uint8]]:
        """The current state as every camera of a view shows it."""
        return {camera: self.frame(view, camera) for camera in view.cameras or self.cameras}

    def expert(self) -> Callable[[], NDArray[np.float32]] | None:
        """A scripted expert for the episode that starts now, or None.

        Called once per step, it reads the simulator and returns the next action [A] in [-1, 1].
        """
        return None

    def remarks(self) -> list[str]:
        """What a check should tell of the episode so far, in a line each."""
        return []

    def state_size(self, state: Any) -> int:
        """Bytes of a saved state, without what it shares with the one before."""
        return len(pickle.dumps(state))

    def close(self) -> None:
        """Free the instance."""


def observed(simulator: Simulator) -> NDArray[np.float32]:
    """The current observation.

    Raises:
        UsageError: of another size than the simulator says, or not finite.
    """
    observation = np.asarray(simulator.observe())
    if observation.shape != (simulator.observation_size,):
        raise UsageError(
            f"an observation of shape {list(observation.shape)}, where its size is {simulator.observation_size}"
        )
    if np.count_nonzero(np.isfinite(observation)) < observation.size:  # quicker than all()
        broken = np.flatnonzero(~np.isfinite(observation))[0]
        raise UsageError(f"number {broken} of the observation is {observation[broken]}")
    return observation


class Outcome(NamedTuple):
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
    """How an environment joins: everything that a run has to know of it.

    Specs travel to the worker processes by cloudpickle: a function of a module is found there by its name, one of a
    script or a notebook is sent along.

    Attributes:
        id: Gymnasium id, as in ``gymnasium.make(id)``.
        instruction: the sentence that a policy is told.
        instruct: seed -> the sentence of its episode, where they differ; ``instruction`` is what they have in common.
        max_episode_steps: environment steps after which an episode is usually cut.
        success: judges an :class:`Outcome`; a ``Simulator`` has its own.
        make: instead of an id, builds a Gymnasium environment (used as it is, wrappers and all) or a ``Simulator``.
        kwargs: keyword arguments of ``gymnasium.make`` or ``make``.
        features: what a run may rely on, by LeRobot's names ("observation.state", "observation.images.NAME",
            "action"); checked when the environment is built. Images that are named are the cameras, in this order; an
            action with bounds is rescaled to those. None is whatever the environment has.
        fps: environment steps per second of the robot's own time; 0 is not known.
        chunk: environment steps per decision of a policy.
        title: the short name in task ids and reports; empty is the registered one.
        citation: a line for the model cards of runs.
        save, restore: copy the state out of the environment and back into it. Without them its attributes are
            deep-copied, which environments made of plain Python and numpy allow.
        expert: (environment, observation [D]) -> action [A], for demonstrations.
        layout: where things stand in a flattened observation: "hand", "object", "goal" and the like. In a dictionary of
            goals, "object" is what is achieved and "goal" what is desired, unless this says otherwise.
        proprioception: the part of an observation that a robot feels of itself.
        hidden_geom_groups: groups of MuJoCo's geoms that pictures leave out, as robosuite's 0, which holds what
            collides and is not meant to be seen. A ``Simulator`` has its own.
        latched: an episode that was a success at a chunk's end is one, and may end there; otherwise success is that of
            the last state, as in tasks of keeping something up.
        timeout: seconds that a reset or a chunk of steps may take in a worker process, which is ended then; 0 waits for
            ever.
        practice: (environment's name, seed, steps, chunk) -> (observation [D] -> chunk [C, A]), an expert gone astray
            in one episode. A pretrained critic learns from all environments that share it.
        extra: the optional dependencies of this package that it needs.

    Raises:
        UsageError: neither or both of id and make, no instruction, no steps, one of save and restore alone, or a
            layout whose places differ in size.
    """

    id: str = ""
    instruction: str = ""
    max_episode_steps: int = 0
    success: Callable[[Outcome], bool] | None = None
    make: Callable[..., Any] | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    features: Mapping[str, Feature] = field(default_factory=dict)
    fps: int = 0
    chunk: int = 5
    title: str = ""
    citation: str = ""
    save: Callable[[Any], Any] | None = None
    restore: Callable[[Any, Any], None] | None = None
    expert: Callable[[Any, NDArray[np.float32]], NDArray[np.float32]] | None = None
    layout: Mapping[str, slice] = field(default_factory=dict)
    proprioception: slice = field(default_factory=lambda: slice(0, 0))
    hidden_geom_groups: tuple[int, ...] = ()
    latched: bool = True
    timeout: float = 60.0
    practice: Callable[[str, int, int, int], Callable[[NDArray[np.float32]], NDArray[np.float32]]] | None = None
    instruct: Callable[[int], str] | None = None
    extra: str = ""

    def __post_init__(self) -> None:
        if bool(self.id) == (self.make is not None):
            raise UsageError(f"EnvSpec {self.source!r}: give a Gymnasium id, or make; one of them")
        if not self.instruction or self.max_episode_steps < 1 or self.chunk < 1:
            raise UsageError(f"EnvSpec {self.source!r}: instruction, max_episode_steps and chunk are needed, from 1 on")
        if not self.timeout >= 0:
            raise UsageError(f"EnvSpec {self.source!r}: timeout {self.timeout} must be 0 (for ever) or more seconds")
        if (self.save is None) != (self.restore is None):
            raise UsageError(f"EnvSpec {self.source!r}: give both save and restore, or neither")
        widths = {name: part.stop - part.start for name, part in self.layout.items() if name in POSITIONS}
        if len(set(widths.values())) > 1:
            raise UsageError(
                f"EnvSpec {self.source!r}: places of its layout have different sizes: "
                + ", ".join(f"{name} {width}" for name, width in widths.items())
            )
        if not set(self.hidden_geom_groups) <= set(range(GEOM_GROUPS)):
            raise UsageError(
                f"EnvSpec {self.source!r}: hidden_geom_groups {self.hidden_geom_groups!r} must be numbers from 0 to "
                f"{GEOM_GROUPS - 1}, as MuJoCo has them"
            )
        strange = [name for name in self.features if name not in (STATE, ACTION) and not name.startswith(IMAGES)]
        if strange:
            raise UsageError(
                f"EnvSpec {self.source!r}: {unknown('feature', strange[0], (STATE, IMAGES + 'NAME', ACTION))}"
            )

    @property
    def source(self) -> str:
        """What it is built from, for messages."""
        return self.id or getattr(self.make, "__name__", str(self.make))

    def told(self, seed: int) -> str:
        """The sentence that a policy is told in the episode of a seed."""
        return self.instruction if self.instruct is None else self.instruct(seed)

    @property
    def cameras(self) -> tuple[str, ...]:
        """The cameras that its features name."""
        return tuple(name.removeprefix(IMAGES) for name in self.features if name.startswith(IMAGES))


_SPECS: dict[str, EnvSpec] = plugins.table("environment")


def register(name: str, spec: EnvSpec) -> None:
    """Make an environment known by name, in this process and in pools built from now on.

    Raises:
        UsageError: the name is taken by another spec, or the spec cannot travel to a worker process.
    """
    try:
        cloudpickle.dumps(spec)
    except Exception as error:  # whatever an object's own pickling raises
        raise UsageError(
            f"environment {name!r}: its spec cannot be sent to worker processes ({type(error).__name__}: {error}); "
            "write its functions with def at the top of a module"
        ) from error
    plugins.register("environment", name, spec)


def adopt(specs: Mapping[str, EnvSpec]) -> None:
    """Know specs as another process knows them, whatever was registered under their names here."""
    _SPECS.update(specs)


def specs(names: Iterable[str]) -> dict[str, EnvSpec]:
    """The registered specs of these names.

    Raises:
        UsageError: an unknown environment, in one line with the nearest names.
    """
    return {name: spec_of(name) for name in names}


def spec_of(name: str) -> EnvSpec:
    """The registered spec of an environment.

    Raises:
        UsageError: there is none, in one line with the nearest names.
    """
    if name not in _SPECS:
        raise unknown("environment", name, _SPECS)
    return _SPECS[name]


def registered() -> list[str]:
    """All registered environments."""
    return sorted(_SPECS)


def resolve(name: str) -> str:
    """The registered name that this one is, or ends: "car" of "my/car".

    Raises:
        UsageError: there is none, with the nearest names, or there are several.
    """
    if name in _SPECS:
        return name
    ending = [known for known in _SPECS if known.endswith(f"/{name}")]
    if len(ending) > 1:
        raise UsageError(f"environment {name!r} may be {' or '.join(ending)}: write the whole name")
    if not ending:
        valid = _SPECS if "/" in name else {known.rpartition("/")[2] for known in _SPECS}
        raise unknown("environment", name, valid)
    return ending[0]


def title_of(name: str) -> str:
    """What task ids and reports call an environment; the name itself where it is not registered here."""
    return (_SPECS[name].title if name in _SPECS else "") or name


def make_simulator(name: str) -> Simulator:
    """Build the physics instance of a registered environment.

    Raises:
        UsageError: unknown name; the message holds the nearest valid ones.
        Refusal: it cannot be built, or it has not the features of its spec.
    """
    spec = spec_of(name)
    from .gym_simulator import GymSimulator

    def build() -> Simulator:
        made = None if spec.make is None else spec.make(**spec.kwargs)
        if isinstance(made, Simulator) and spec.hidden_geom_groups:
            raise Refusal(f"{name}: its EnvSpec hides geom groups, which a {type(made).__name__} has to do itself")
        return made if isinstance(made, Simulator) else GymSimulator(spec, made)

    with needing(name, spec.extra):
        simulator = knowing(build)
    offered = simulator.features
    for feature, wanted in spec.features.items():
        if feature not in offered:
            raise Refusal(f"{name}: its EnvSpec has {listed({feature: wanted})}, the environment has {listed(offered)}")
        shape = offered[feature].shape
        if shape and wanted.shape != shape:
            here, there = listed({feature: wanted}), listed({feature: offered[feature]})
            raise Refusal(f"{name}: its EnvSpec has {here}, the environment has {there}")
    simulator.cameras = spec.cameras or simulator.cameras
    simulator.layout = _joined(simulator.layout, spec.layout)
    return simulator


@contextmanager
def needing(name: str, extra: str) -> Iterator[None]:
    """Say which extra is missing where an import fails; without an extra nothing is said.

    Raises:
        Refusal: in one line, how it is installed.
    """
    try:
        yield
    except ImportError as error:
        if not extra:
            raise
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise Refusal(f"{name} needs the extra {extra!r} ({reason}): pip install 'autotelic[{extra}]'") from error


def layout_of(name: str) -> Mapping[str, slice]:
    """Where things stand in the observations of a registered environment, which is built to be asked.

    Raises:
        Refusal: it cannot be built.
    """
    simulator = make_simulator(name)
    try:
        return simulator.layout
    finally:
        simulator.close()


def _joined(found: Mapping[str, slice], told: Mapping[str, slice]) -> dict[str, slice]:
    """A spec's layout, and of what was found the places that it does not name and that are of their size."""
    sizes = {part.stop - part.start for name, part in told.items() if name in POSITIONS}
    new = {name: part for name, part in found.items() if not sizes or part.stop - part.start in sizes}
    return {**new, **told}


def listed(features: Mapping[str, Feature]) -> str:
    """Features and their shapes in one line."""
    return ", ".join(f"{name} {list(feature.shape) or '[H, W, 3]'}" for name, feature in features.items())
