"""An environment tried for about a second before anything is learned in it: does it keep what a pool relies on?

A pool relies on seeds that decide where an episode starts, on states that go on bit for bit as they did, and on finite
numbers. What does not hold is told in a line with its remedy. Where states cannot be restored, every episode gets an
instance of its own (``Mode``), as in Gymnasium's vector environments, and is exact again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError, raised
from . import global_generators
from .simulator import EnvSpec, Refusal, RenderingUnavailable, Simulator, View, make_simulator, observed, spec_of
from .splits import seeds

CHUNKS = 6
"""Chunks of random actions that an episode is tried for."""

LANES = 256
"""Episodes in progress, where nothing else limits them."""

STARTS = 40
"""Initial states of the evaluation that are looked at, as far as the time allows."""

SECONDS = 0.25
"""For the initial states, and for each episode that is tried."""


INSTANCES = 32
"""Instances at most of an environment whose states cannot be restored, and at least for others to have several."""

MEMORY = 2**30
"""Bytes that the instances of an environment may take, as far as they are known."""

DEAR = 0.15
"""Share of a chunk's steps from which on copying states costs too much."""

BUILDING = 8.0
"""Seconds that building all instances may take, for states to be spared."""


@dataclass(frozen=True)
class Mode:
    """How a pool runs the episodes of an environment.

    Attributes:
        restores: its states can be put back, so that episodes may take turns in one instance.
        resets: a reset leaves nothing behind; otherwise an instance begins each episode as if newly built.
        seeded: NumPy's and Python's global generators are seeded and restored with each episode.
        own: each episode has an instance of its own all the same, which is faster where steps are cheap.
        room: episodes in progress at most, 0 for no limit. It does not depend on ``own``, and so on no measured time.
    """

    restores: bool = True
    resets: bool = True
    seeded: bool = False
    own: bool = field(default=False, compare=False)
    room: int = field(default=0, compare=False)

    @property
    def turns(self) -> bool:
        """Whether episodes take turns in one instance."""
        return self.restores and not self.own


@dataclass(frozen=True)
class Trait:
    """A line of what was found: ``good`` is None where nothing is wrong; ``told`` if a run should say it too."""

    name: str
    good: bool | None
    text: str
    told: bool = False


@dataclass(frozen=True)
class Checked:
    """What was found, and how to run the environment."""

    traits: tuple[Trait, ...]
    mode: Mode

    @property
    def warnings(self) -> list[str]:
        """The lines that a run should say."""
        return [trait.text for trait in self.traits if trait.told or trait.good is False]


@dataclass(eq=False)
class _Seen:
    """An episode that was tried: what was observed at its start and after each chunk, and how it broke off."""

    observations: list[NDArray[np.float32]] = field(default_factory=list)
    successes: list[bool] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    films: list[dict[str, NDArray[np.uint8]]] = field(default_factory=list)
    fault: str = ""

    def differs(self, other: _Seen) -> str:
        """Where another one differs first, or nothing."""
        for step, (a, b) in enumerate(zip(self.observations, other.observations, strict=False)):
            if not np.array_equal(a, b):
                by = f" by up to {np.abs(a - b).max():.2g}" if a.shape == b.shape else ""
                return f"the observation differs{by} at {'the start' if step == 0 else f'chunk {step}'}"
        if any(a != b for a, b in zip(self.successes, other.successes, strict=False)):
            return "success differs"
        if any(a != b for a, b in zip(self.rewards, other.rewards, strict=False)):
            return "the reward differs"
        for mine, theirs in zip(self.films, other.films, strict=False):
            if any(not np.array_equal(mine[camera], theirs[camera]) for camera in mine):
                return "a picture differs"
        return "" if self.fault == other.fault else f"it ends otherwise ({self.fault or other.fault})"


def check_env(
    environment: str,
    *,
    simulator: Simulator | None = None,
    view: View | None = None,
    beat: Callable[[], None] = lambda: None,
) -> Checked:
    """Try a registered environment.

    Args:
        simulator: one to begin with, if there is one already.
        view: compare pictures too, taken like this.
        beat: called before anything that may take long.

    Raises:
        Refusal: it cannot be built, reset, stepped or judged at all, or observes what is not finite; in one line.
    """
    trial = _Trial(environment, spec_of(environment), view, beat)
    try:
        with global_generators.kept():
            return Checked(tuple(trial.traits(simulator or trial.made())), trial.mode)
    finally:
        trial.close(simulator)


class _Trial:
    """One check of one environment."""

    def __init__(self, environment: str, spec: EnvSpec, view: View | None, beat: Callable[[], None]) -> None:
        self.environment, self.spec, self.view, self.beat = environment, spec, view, beat
        self.mode = Mode()
        self.built: list[Simulator] = []
        self.remarks: dict[str, None] = {}
        self.unseen = ""
        self.decides = True
        """Whether a seed decides an episode."""

    def made(self) -> Simulator:
        """Another instance."""
        self.beat()
        self.built.append(built(self.environment))
        return self.built[-1]

    def close(self, kept: Simulator | None) -> None:
        for each in self.built:
            if each is not kept:
                with suppress(Exception):
                    each.close()

    def traits(self, simulator: Simulator) -> Iterator[Trait]:
        size, count = simulator.action_size, simulator.observation_size
        yield Trait("sizes", True, f"observation [{count}], action [{size}], cameras {', '.join(simulator.cameras)}")
        chunks = np.random.default_rng(0).uniform(-1, 1, (2, CHUNKS, self.spec.chunk, size)).astype(np.float32)
        before = global_generators.get()
        numbers, straight = self.straight(simulator, chunks)
        if drawn := global_generators.drawn_from(before):
            self.mode = replace(self.mode, seeded=True)
            numbers, straight = self.straight(simulator, chunks)
            where = " and ".join(drawn)
            yield Trait(
                "randomness",
                None,
                f"it draws from {where}, which is seeded and restored with each episode: better is self.np_random",
                told=True,
            )
        for seed, each in zip(numbers, straight, strict=True):
            if each.fault:
                yield Trait("steps", False, f"seed {seed}, {each.fault}: such episodes count as failed")
        yield from self.determined(simulator, numbers, straight, chunks)
        yield from self.restored(simulator, numbers, straight, chunks)
        yield from self.starts(simulator)
        for remark in self.remarks:
            yield Trait("remark", None, remark, told=True)
        if self.unseen:
            yield Trait("pictures", None, self.unseen, told=True)
        elif straight[0].films:
            yield Trait("pictures", True, f"of {', '.join(straight[0].films[0])}")
        moved = any(not np.array_equal(each.observations[0], each.observations[-1]) for each in straight)
        if count:
            yield Trait("actions", moved or None, "they change something" if moved else "random ones change nothing")

    def straight(self, simulator: Simulator, chunks: Any) -> tuple[list[int], list[_Seen]]:
        """Two episodes, one after the other, from the first seeds of the evaluation that can be reset."""
        numbers: list[int] = []
        found: list[_Seen] = []
        broken: list[str] = []
        for seed in seeds("eval", 8):
            seen = self.play(simulator, seed, chunks[len(found)])
            if seen.observations:
                numbers.append(seed)
                found.append(seen)
            else:
                broken.append(seen.fault)
            if len(found) == 2:
                break
        if len(found) < 2 or all(len(each.observations) == 1 and each.fault for each in found):
            fault = (broken or [found[0].fault])[0]
            raise Refusal(f"{self.environment}: no episode can be begun; {fault}")
        for fault in broken:
            self.remarks[f"some resets fail ({fault}): such episodes count as failed"] = None
        return numbers, found

    def play(self, simulator: Simulator, seed: int, chunks: Any) -> _Seen:
        """An episode, without interruption, as far as the time allows."""
        seen = _Seen()
        try:
            self.reset(simulator, seed)
            self.look(simulator, seen)
            started = time.monotonic()
            for chunk in chunks:
                self.beat()
                simulator.step(chunk)
                self.look(simulator, seen)
                if time.monotonic() - started > SECONDS and len(seen.observations) > 2:
                    break
        except RenderingUnavailable:
            raise
        except UsageError as error:
            seen.fault = str(error)
        except Exception as error:
            seen.fault = raised(error)
        return seen

    def reset(self, simulator: Simulator, seed: int) -> None:
        self.beat()
        if self.mode.seeded:
            global_generators.seed(seed)
        simulator.reset(seed)

    def look(self, simulator: Simulator, seen: _Seen) -> None:
        observation = observed(simulator)
        success = simulator.success()
        if self.view is not None and not self.unseen:
            try:
                seen.films.append(simulator.frames(self.view))
            except Refusal as error:
                self.unseen = str(error)
        seen.observations.append(observation)
        seen.successes.append(success)
        seen.rewards.append(simulator.total_reward)
        self.remarks.update(dict.fromkeys(simulator.remarks()))

    def determined(
        self, simulator: Simulator, numbers: Sequence[int], straight: Sequence[_Seen], chunks: Any
    ) -> Iterator[Trait]:
        """Is the first episode the same a second time, after another one?"""
        again = self.play(simulator, numbers[0], chunks[0])
        difference = straight[0].differs(again)
        if not difference:
            yield Trait("reset", True, "the seed decides")
            return
        first, second = (self.play(self.made(), numbers[0], chunks[0]) for _ in range(2))
        if not first.differs(second):
            self.mode = replace(self.mode, resets=False)
            yield Trait(
                "reset",
                False,
                f"the same seed leads elsewhere after another episode ({difference}): its reset leaves something "
                "behind; every episode begins as in a new instance",
            )
            return
        self.decides = False
        if "at the start" in first.differs(second):
            yield Trait(
                "reset",
                False,
                f"the same seed starts elsewhere ({first.differs(second)}): use self.np_random after "
                "super().reset(seed=seed)",
            )
        else:
            text = f"it is not deterministic: from one seed, by the same actions, {first.differs(second)}"
            yield Trait("steps", False, text)

    def restored(
        self, simulator: Simulator, numbers: Sequence[int], straight: Sequence[_Seen], chunks: Any
    ) -> Iterator[Trait]:
        """Do two episodes that take turns go on as they did alone?"""
        pristine = None
        if not self.mode.resets:
            simulator = self.made()
            with suppress(Refusal):
                pristine = simulator.save()
            straight = [self.play(self.made(), seed, script) for seed, script in zip(numbers, chunks, strict=True)]
        try:
            turns = _Turns(self, simulator, pristine)
            found = turns.play(numbers, straight, chunks)
        except Exception as error:
            difference = " ".join(str(error).split()).removeprefix(f"the state of {self.spec.source!r} ")
        else:
            pairs = zip(straight, found, strict=False) if self.decides else ()
            difference = next(filter(None, (alone.differs(each) for alone, each in pairs)), "")
            if not difference and len(found) > len(straight):
                difference = found[0].differs(found[-1])
            if not difference:
                cost = f"{turns.size / 1e6:.3g} MB and {1e3 * turns.seconds / turns.moves:.2g} ms per state"
                self.mode = self.spared(turns, numbers, straight, chunks)
                faster = "; an instance per episode is faster" if self.mode.own else ""
                yield Trait("saved state", True, f"goes on bit for bit; {cost}{faster}", told=turns.size > 50e6)
                return
        self.mode = replace(self.mode, restores=False, room=INSTANCES)
        remedy = "correct its EnvSpec's save and restore" if self.spec.save else "give its EnvSpec save and restore"
        remedy = "" if "give its EnvSpec save" in difference else f"; {remedy} to let episodes take turns"
        yield Trait(
            "saved state", None, f"it cannot be restored ({difference}): an instance per episode{remedy}", told=True
        )

    def spared(self, turns: _Turns, numbers: Sequence[int], straight: Sequence[_Seen], chunks: Any) -> Mode:
        """The mode, with an instance per episode where these are small, quickly built, and cheaper than states."""
        size = turns.simulator.instance_size
        count = MEMORY // size if size and self.mode.resets and self.decides and not self.mode.seeded else 0
        if count < INSTANCES:
            return self.mode
        mode = replace(self.mode, room=count)
        if turns.seconds < DEAR * turns.stepping:
            return mode
        begun = time.process_time()  # a machine that is busy with other things builds no slower
        other = self.made()
        quick = (time.process_time() - begun) * min(count, LANES) < BUILDING
        return replace(mode, own=quick and self.abreast((turns.simulator, other), numbers, straight, chunks))

    def abreast(
        self, pair: Sequence[Simulator], numbers: Sequence[int], straight: Sequence[_Seen], chunks: Any
    ) -> bool:
        """Whether two episodes go on as they did alone if each has its own instance: none changes what others share."""
        for simulator, seed in zip(pair, numbers, strict=True):
            self.reset(simulator, seed)
        found = [_Seen(), _Seen()]
        for chunk in range(min(len(each.observations) for each in straight)):
            for simulator, seen, script in zip(pair, found, chunks, strict=True):
                if chunk:
                    simulator.step(script[chunk - 1])
                seen.observations.append(observed(simulator))
                seen.successes.append(simulator.success())
                seen.rewards.append(simulator.total_reward)
        return not any(replace(alone, fault="").differs(seen) for alone, seen in zip(straight, found, strict=True))

    def starts(self, simulator: Simulator) -> Iterator[Trait]:
        """How many initial states of the evaluation differ, and how many are successes."""
        begun, solved, states, failed = time.monotonic(), 0, set(), 0
        for seed in seeds("eval", STARTS):
            try:
                self.reset(simulator, seed)
                states.add(observed(simulator).tobytes())
                solved += simulator.success()
            except Exception:
                failed += 1
            if time.monotonic() - begun > SECONDS and seed > seeds("eval", 1)[0]:
                break
        tried = seed - seeds("eval", 1)[0] + 1
        if len(states) == 1 and tried - failed > 1 and simulator.observation_size:
            yield Trait("starts", None, f"all seeds give one state: {tried} episodes are one", told=True)
        if solved:
            text = f"{solved} of {tried} states are successes before anything is done"
            yield Trait("start", False if solved == tried - failed else None, text, told=True)
        else:
            yield Trait("start", True, f"none of {tried} states is a success before anything is done")


class _Turns:
    """Episodes that take turns of a chunk each in one instance.

    Seconds, moves and bytes are those of their states; their steps took ``stepping`` seconds.
    """

    def __init__(self, trial: _Trial, simulator: Simulator, pristine: Any) -> None:
        self.trial, self.simulator, self.pristine = trial, simulator, pristine
        self.seconds, self.stepping, self.moves, self.size = 0.0, 0.0, 0, 0

    def play(self, numbers: Sequence[int], straight: Sequence[_Seen], chunks: Any) -> list[_Seen]:
        """The episodes, as far as they went alone; the first is begun a second time at the end."""
        found, states = [], []
        for seed in numbers:
            if self.pristine is not None:
                self.simulator.restore(self.pristine)
            self.trial.reset(self.simulator, seed)
            found.append(_Seen())
            states.append(self._looked(found[-1]))
        first, lengths = states[0], [len(each.observations) for each in straight]
        for chunk in range(max(lengths) - 1):
            for row, script in enumerate(chunks):
                if chunk + 1 < lengths[row]:
                    states[row] = self._moved(states[row], script[chunk], found[row])
        again = _Seen(found[0].observations[:1], found[0].successes[:1], found[0].rewards[:1], found[0].films[:1])
        for chunk in range(min(2, lengths[0] - 1)):
            first = self._moved(first, chunks[0][chunk], again)
        for alone, seen in zip(straight, found, strict=True):
            seen.fault = alone.fault  # it was not taken further than it went alone
        again.fault = straight[0].fault
        return [*found, again] if again.differs(found[0]) or not self.trial.decides else found

    def _moved(self, state: tuple[Any, Any], chunk: Any, seen: _Seen) -> tuple[Any, Any]:
        self.trial.beat()
        started = time.process_time()
        self.simulator.restore(state[0])
        if self.trial.mode.seeded:
            global_generators.put(state[1])
        restored = time.process_time()
        self.simulator.step(chunk)
        self.seconds, self.stepping = self.seconds + restored - started, self.stepping + time.process_time() - restored
        return self._looked(seen)

    def _looked(self, seen: _Seen) -> tuple[Any, Any]:
        self.trial.look(self.simulator, seen)
        started = time.process_time()
        state = self.simulator.save(), global_generators.get()
        self.seconds, self.moves = self.seconds + time.process_time() - started, self.moves + 1
        self.size = self.simulator.state_size(state[0])
        return state


@contextmanager
def _naming(environment: str) -> Iterator[None]:
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise Refusal(f"{environment} cannot be built: {raised(error)}") from error


def built(environment: str) -> Simulator:
    """An instance.

    Raises:
        Refusal: it cannot be built, in one line.
    """
    with _naming(environment):
        return make_simulator(environment)
