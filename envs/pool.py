"""Many episodes in step, over processes, in one deterministic order."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..machine import cores
from .demonstrations import Demonstration as Demonstration
from .demonstrations import first_film, stacked
from .env_checker import LANES, Mode
from .joining import join
from .oracle import require_oracle
from .process import Call, Here, Process, WorkerDied, exchange
from .simulator import ACTION, STATE, EnvSpec, Feature, View, spec_of, specs
from .worker import Look, Replay, Seen, Tick, black

logger = logging.getLogger(__name__)

Act = Callable[..., NDArray[Any]]
"""(rows [n], observations [n, D]) -> actions [n, C, A]; rows index the requests, ascending. With ``see`` a third
argument: frames of the same rows, camera -> [n, size, size, 3] uint8."""

Stop = Callable[..., NDArray[np.bool_]]
"""(rows [n], observations [n, D]) -> bool [n]; True ends the episode. With ``see`` frames too, as for ``act``."""

PATIENCE = 8
"""Workers that may die of episodes in a run before an episode that killed one is not tried again."""


@dataclass(frozen=True)
class EpisodeRequest:
    """One episode: where, from which initial state, and for how many environment steps at most."""

    environment: str
    seed: int
    horizon: int


@dataclass(eq=False)
class Episode:
    """What happened, in S chunks of C actions.

    Attributes:
        environment, instruction, seed: what was asked for.
        observations: [S + 1, D] float32, at the start and at each chunk's end.
        actions: [S, C, A] float32 as the policy gave them; of the last chunk only
            ``steps - (S - 1) * C`` were executed.
        steps: environment steps.
        stopped: ended by ``stop``.
        success: at a chunk's end, at any or (where the spec says that it is not latched) at the last; None when the
            oracle was not read.
        fault: why it could not go on, with environment, seed and step, or None. It counts as failed, and its last
            observation is the one before. One that could not begin has zeros, and a chunk of zeros in 0 steps.
        terminated: the environment ended it for good, so that no state follows the last; None as for success.
        rewards: [S] float32, what each chunk earned in the environment's own terms, or None.
        images: camera -> [S + 1, size, size, 3] uint8, taken with the observations, or None.
    """

    environment: str
    instruction: str
    seed: int
    observations: NDArray[np.float32]
    actions: NDArray[np.float32]
    steps: int
    stopped: bool
    success: bool | None
    images: Mapping[str, NDArray[np.uint8]] | None
    fault: str | None = None
    terminated: bool | None = None
    rewards: NDArray[np.float32] | None = None

    @property
    def frames(self) -> NDArray[np.uint8] | None:
        """[S + 1, size, size, 3] what the first camera saw: for judges that look at one film."""
        return first_film(self.images)


class Pool:
    """Simulators for a whole run: built once, used by every ``run`` and ``demonstrate``.

    Groups of requests with equal (environment, seed) share one reset and one worker, chosen before the
    first step. At every tick each live episode makes one chunk, and room is filled in the order of the
    requests, so what ``act`` is called with depends neither on the number of workers nor on who is faster.

    An environment is tried for about a second before it is first used (:func:`~.env_checker.check_env`). What does
    not hold is logged in a line. If its states cannot be restored, every episode gets an instance of its own.

    A worker that dies or hangs is replaced, and its episodes are replayed from seed and actions. An episode whose
    simulator raises, shows what is not finite, or ends or stops a worker twice is over as failed, and counted.

    Workers start without the caller's main script, so they import no torch, and neither scripts nor notebooks need an
    ``if __name__ == "__main__"`` guard: functions and classes of theirs are sent along.

    Args:
        environments: names that requests may use.
        chunk: C, actions per decision; None is what the specs say, which must be the same.
        workers: processes; None: one per core; 0: everything in this process. Pictures come from a worker
            process even then, because GL and torch do not share a process well.
        lanes: episodes in progress at most.

    Attributes:
        environments, chunk, lanes: as given.
        faults: episodes so far that could not go on.

    Raises:
        UsageError: an unknown environment, with the nearest valid names, or environments of different chunks.
    """

    def __init__(
        self, environments: Sequence[str], *, chunk: int | None = None, workers: int | None = None, lanes: int = LANES
    ) -> None:
        known = specs(environments)
        chunk = _common_chunk(known) if chunk is None else chunk
        if chunk < 1 or lanes < 1 or (workers is not None and workers < 0):
            raise ValueError(f"Pool: chunk ({chunk}) and lanes ({lanes}) start at 1, workers ({workers}) at 0")
        self.environments = tuple(dict.fromkeys(environments))
        self.chunk, self.lanes = chunk, lanes
        count = cores() if workers is None else workers
        self._workers: list[Here | Process] = [Process(known) for _ in range(count)] or [Here(known)]
        self._painters: list[Here | Process] = self._workers if count else [Process(known)]
        for worker in self._workers:
            worker.start()
        self.faults = 0
        self._own_cpu = 0.0
        self._described: dict[str, tuple[Mapping[str, Feature], tuple[str, ...]]] = {}
        self._modes: dict[str, Mode] = {}

    @property
    def cpu_seconds(self) -> float:
        """CPU time so far of all workers, and of this process inside the pool but outside ``act`` and ``stop``."""
        return self._own_cpu + sum(worker.cpu_seconds for worker in {*self._workers, *self._painters})

    def features(self, environment: str) -> Mapping[str, Feature]:
        """What an environment observes and acts with, by LeRobot's names.

        Raises:
            ValueError: not an environment of this pool.
            Refusal: it cannot be built, or it has not the features of its spec.
        """
        return self._description(environment)[0]

    def sizes(self, environment: str) -> tuple[int, int]:
        """(D, A): the sizes of an observation and of an action; raises as ``features``."""
        features = self.features(environment)
        return features[STATE].shape[0], features[ACTION].shape[0]

    def cameras(self, environment: str) -> tuple[str, ...]:
        """Whose pictures are taken where a view names no camera; raises as ``features``."""
        return self._description(environment)[1]

    def build(self, view: View | None = None) -> None:
        """Build and try every environment now, so that one that cannot be used is refused at once.

        Args:
            view: how pictures will be taken, if they will be.

        Raises:
            Refusal: as ``features`` does.
        """
        self._describe([name for name in self.environments if name not in self._described], view)

    def run(
        self,
        requests: Sequence[EpisodeRequest],
        act: Act,
        *,
        stop: Stop | None = None,
        oracle: bool = False,
        rewards: bool = False,
        render: View | None = None,
        see: bool = False,
        keep: bool = True,
    ) -> list[Episode]:
        """Run episodes with a policy.

        Args:
            requests: in environments with the same sizes of observation and action, and the same cameras if pictures
                are taken. Horizon 0 gives the initial observation only.
            act: called in this process on all live episodes at once.
            stop: asked on each new observation at a chunk's end.
            oracle: read success at the start and at chunk ends, and where the environment ends an episode, which ends
                there. Without ``stop`` and ``rewards`` an episode also ends at the first chunk's end at which it has
                succeeded, if success is latched, since nothing more can change.
            rewards: read what each chunk earned; with ``oracle`` only.
            render: take pictures wherever there is an observation.
            see: call ``act`` and ``stop`` with these pictures as a third argument.
            keep: leave the pictures on the episodes. False leaves None there and spares the picture after an
                episode's last chunk, unless ``stop`` sees it.

        Returns:
            Episodes in the order of the requests.

        Raises:
            OracleSealed: ``oracle`` inside a sealed block.
            ValueError: a request, or what ``act`` or ``stop`` returned, does not fit; ``see`` without ``render``.
            RenderingUnavailable: pictures were asked for on a machine without GL.
            Refusal: three workers died that no episode is to blame for; the message says how the last one did.
        """
        if oracle:
            require_oracle("success in Pool.run(oracle=True)")
        if rewards and not oracle:
            raise ValueError("Pool.run(rewards=True) needs oracle=True: rewards are the environment's own knowledge")
        if see and render is None:
            raise ValueError("Pool.run(see=True) needs render=View(...): nobody takes pictures otherwise")
        if not (see or keep):
            render = None
        if not requests:
            return []
        environments = {request.environment for request in requests}
        shape, render = self._common(environments, render)
        workers = self._workers if render is None else self._painters
        with self._counted():
            watched = keep or stop is not None
            modes = {name: self._modes[name] for name in environments}
            if render is not None:  # one instance draws for all, where it can
                modes = {name: replace(mode, own=False) for name, mode in modes.items()}
            room = min([self.lanes, *(mode.room for mode in modes.values() if mode.room)])
            ends = oracle and stop is None and not rewards
            looks = _Looks(oracle, rewards, render, keep, watched, ends)
            run = _Run(workers, requests, room, looks, modes, shape)
            while run.tick():
                if stop is not None and len(run.stepped):
                    seen = run.seen(run.stepped, see)
                    with self._counted(-1):
                        answer = stop(run.stepped, *seen)
                    run.end(answer)
                rows = run.live()
                if len(rows):
                    seen = run.seen(rows, see)
                    with self._counted(-1):
                        actions = act(rows, *seen)
                    run.choose(rows, actions)
            episodes = run.episodes()
        faults = [episode.fault for episode in episodes if episode.fault is not None]
        if faults:
            self.faults += len(faults)
            logger.warning("%d of %d episodes ended as failed; the first: %s", len(faults), len(episodes), faults[0])
        return episodes

    def demonstrate(
        self, environment: str, seeds: Sequence[int], *, horizon: int, settle: int, render: View | None = None
    ) -> list[Demonstration]:
        """Demonstrations of the scripted expert, one per seed and in their order.

        A seed on which the expert fails is replaced by ``seed + RETRY_STRIDE``, and so on; a warning says so.

        Args:
            horizon: steps within which success must first hold.
            settle: further expert steps to record, so that the last states lie well inside the goal.
            render: take pictures with each observation.

        Raises:
            ValueError: not an environment of this pool.
            Refusal: it has no expert, or the expert failed on too many seeds in a row.
        """
        self._description(environment)
        workers = self._workers if render is None else self._painters
        count, mode = len(workers), self._modes[environment]
        shares = [(environment, list(seeds[index::count]), horizon, settle, render, mode) for index in range(count)]
        calls = [
            Call(worker, "demonstrate", lambda share=share: share)  # type: ignore[misc]
            for worker, share in zip(workers, shares[: len(seeds)], strict=False)
        ]
        with self._counted():
            answers = exchange(calls)
        found: list[Demonstration] = []
        for index in range(len(seeds)):
            demonstration, failed = answers[index % count][index // count]
            if failed:
                logger.warning("%s: the expert failed on seeds %s, took %d", environment, failed, demonstration.seed)
            found.append(demonstration)
        return found

    def close(self) -> None:
        """End the worker processes."""
        for worker in {*self._workers, *self._painters}:
            worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _common(self, environments: Set[str], render: View | None) -> tuple[tuple[int, int, int], View | None]:
        """(D, A, C) of environments that one run has, and the view with the cameras that they have."""
        sizes = {self.sizes(environment) for environment in environments}
        if len(sizes) > 1:
            raise ValueError(f"one run needs environments of one (observation size, action size), not {sorted(sizes)}")
        if render is not None and not render.cameras:
            cameras = {self.cameras(environment) for environment in environments}
            if len(cameras) > 1:
                raise UsageError(f"one run needs environments with the same cameras, not {sorted(cameras)}: name some")
            render = replace(render, cameras=cameras.pop())
        return (*sizes.pop(), self.chunk), render

    def _description(self, environment: str) -> tuple[Mapping[str, Feature], tuple[str, ...]]:
        self._check(environment)
        if environment not in self._described:
            self._describe([environment], None)
        return self._described[environment]

    def _describe(self, environments: Sequence[str], view: View | None) -> None:
        """Ask for features and cameras, and have what was not tried in this process tried."""
        with self._counted():
            joined = join(self._workers if view is None else self._painters, environments, view)
        self._described |= {name: (each.features, each.cameras) for name, each in joined.items()}
        self._modes |= {name: each.mode for name, each in joined.items()}

    def _check(self, environment: str) -> None:
        if environment not in self.environments:
            spec_of(environment)
            raise ValueError(f"environment {environment!r} is not in this pool: {', '.join(self.environments)}")

    @contextmanager
    def _counted(self, sign: int = 1) -> Iterator[None]:
        started = time.process_time()
        try:
            yield
        finally:
            self._own_cpu += sign * (time.process_time() - started)


@dataclass(eq=False)
class _Lane:
    """An episode in progress."""

    request: EpisodeRequest
    observations: list[NDArray[np.float32]] = field(default_factory=list)
    actions: list[NDArray[np.float32]] = field(default_factory=list)
    frames: list[dict[str, NDArray[np.uint8]]] = field(default_factory=list)
    chosen: NDArray[np.float32] | None = None
    steps: int = 0
    stopped: bool = False
    success: bool = False
    latched: bool = True
    over: bool = False
    terminated: bool = False
    rewards: list[float] = field(default_factory=list)
    fault: str | None = None

    def next_actions(self) -> NDArray[np.float32]:
        """[c, A] of the chosen chunk, what fits below the horizon."""
        assert self.chosen is not None
        return self.chosen[: self.request.horizon - self.steps]

    def executed(self) -> list[NDArray[np.float32]]:
        """[c, A] per chunk so far."""
        starts = range(0, self.steps, len(self.actions[0])) if self.actions else ()
        return [actions[: self.steps - start] for actions, start in zip(self.actions, starts, strict=True)]


@dataclass(frozen=True)
class _Looks:
    """What a run reads: ``keep`` leaves pictures on the episodes, ``watched`` says that someone sees the last too."""

    oracle: bool
    rewards: bool
    render: View | None
    keep: bool
    watched: bool
    ends_on_success: bool


class _Run:
    """The state of one :meth:`Pool.run`: who is live, on which worker, and what was seen.

    ``stepped`` are the rows that the last tick stepped (the others it started).
    """

    def __init__(
        self,
        workers: Sequence[Here | Process],
        requests: Sequence[EpisodeRequest],
        room: int,
        looks: _Looks,
        modes: Mapping[str, Mode],
        shape: tuple[int, int, int],
    ) -> None:
        self.workers, self.room, self.modes = workers, room, modes
        self.size, self.chunk = shape[0], (shape[2], shape[1])
        self.looks = looks
        latched = {name: spec_of(name).latched for name in modes}
        self.lanes = [_Lane(request, latched=latched[request.environment]) for request in requests]
        self.home = _homes(requests, len(workers))
        self.waiting = deque(range(len(requests)))
        self.active: list[int] = []
        self.stepped = np.zeros(0, np.int64)
        self.blamed: dict[int, list[str]] = {}
        exchange([Call(worker, "clear", lambda: (modes,)) for worker in workers])

    def tick(self) -> bool:
        """Execute the chosen chunks and fill free lanes; False when every episode is over."""
        old = self.live().tolist()
        new = [self.waiting.popleft() for _ in range(min(len(self.waiting), self.room - len(old)))]
        self.active = old + new
        self.stepped = np.array(old, np.int64)
        calls, served = [], []
        for index, worker in enumerate(self.workers):
            stepping = [row for row in old if self.home[row] == index]
            starting = [row for row in new if self.home[row] == index]
            if stepping or starting:
                arguments = partial(self._arguments, stepping, starting)
                calls.append(Call(worker, "tick", arguments, self._blame, partial(self._revive, stepping)))
                served.append((stepping, starting))
        for (stepping, starting), seen in zip(served, exchange(calls), strict=True):
            self._record(stepping, starting, seen)
        return bool(self.active)

    def _arguments(self, stepping: Sequence[int], starting: Sequence[int]) -> tuple[Tick]:
        """A tick of the rows that can go on."""
        going = [row for row in stepping if self.lanes[row].fault is None]
        new = [row for row in starting if self.lanes[row].fault is None]
        tick = Tick(
            [(row, self.lanes[row].next_actions()) for row in going],
            [(row, self.lanes[row].request.environment, self.lanes[row].request.seed) for row in new],
            self.looks.oracle,
            self.looks.render,
            frozenset() if self.looks.watched else frozenset(filter(self._last, going)),
            self.looks.rewards,
        )
        return (tick,)

    def _blame(self, death: WorkerDied) -> bool:
        """Note which episode a worker died of; one that does it again is over."""
        if not 0 <= death.row < len(self.lanes):
            return False
        blamed = self.blamed.setdefault(death.row, [])
        blamed.append(str(death))
        if len(blamed) > 1 or sum(map(len, self.blamed.values())) > PATIENCE:
            self._fail(death.row, f"its worker process died ({death}), {len(blamed)} times")
        return True

    def _revive(self, stepping: Sequence[int], worker: Here | Process) -> None:
        """Bring the episodes of a worker that died back to where they were, if they come there."""
        worker.ask("clear", self.modes)
        worker.answer()
        worker.ask("replay", self._replays([row for row in stepping if self.lanes[row].fault is None]))
        for row, look in worker.answer().items():
            last = self.lanes[row].observations[-1]
            if isinstance(look, str):
                self._fail(row, f"in its replay after a worker died: {look}")
            elif not np.array_equal(look.observation, last):
                by = np.abs(look.observation - last).max()
                self._fail(row, f"a worker died, and the replay led elsewhere (by up to {by:.2g}): not deterministic")

    def _fail(self, row: int, why: str) -> None:
        lane = self.lanes[row]
        lane.fault = f"{lane.request.environment}, seed {lane.request.seed}, after step {lane.steps}: {why}"

    def live(self) -> NDArray[np.int64]:
        """[n] rows that go on."""
        return np.array([row for row in self.active if not self._over(self.lanes[row])], np.int64)

    def seen(self, rows: NDArray[np.int64], see: bool) -> tuple[Any, ...]:
        """The latest observations [n, D] of these rows, and frames by camera [n, size, size, 3] if these are seen."""
        observations = np.stack([self.lanes[row].observations[-1] for row in rows])
        return (observations, stacked([self.lanes[row].frames[-1] for row in rows])) if see else (observations,)

    def end(self, answer: NDArray[np.bool_]) -> None:
        """Mark what ``stop`` answered for the stepped rows."""
        answer = np.asarray(answer)
        if answer.shape != self.stepped.shape:
            raise ValueError(f"stop returned shape {answer.shape}; expected bool [n] = {self.stepped.shape}")
        for row in self.stepped[answer.astype(bool)]:
            self.lanes[row].stopped = True

    def choose(self, rows: NDArray[np.int64], actions: NDArray[Any]) -> None:
        """Keep what ``act`` answered for the next tick; NaN and infinity end an episode as failed."""
        actions = np.asarray(actions, np.float32)
        expected = (len(rows), *self.chunk)
        if actions.shape != expected:
            raise ValueError(f"act returned shape {actions.shape}; expected [n, C, A] = {expected}")
        broken = ~np.isfinite(actions).all((1, 2))
        for row, chosen, lost in zip(rows, actions, broken, strict=True):
            self.lanes[row].chosen = chosen.copy()
            if lost:
                self._fail(row, "act answered NaN or infinity")

    def episodes(self) -> list[Episode]:
        """The finished episodes, in the order of the requests."""
        nothing = np.zeros((0, *self.chunk), np.float32)
        return [
            Episode(
                lane.request.environment,
                spec_of(lane.request.environment).instruction,
                lane.request.seed,
                np.stack(lane.observations),
                np.stack(lane.actions) if lane.actions else nothing,
                lane.steps,
                lane.stopped,
                lane.success and lane.fault is None if self.looks.oracle else None,
                stacked(lane.frames) if self.looks.render is not None and self.looks.keep else None,
                lane.fault,
                lane.terminated and lane.fault is None if self.looks.oracle else None,
                np.array(lane.rewards, np.float32) if self.looks.rewards else None,
            )
            for lane in self.lanes
        ]

    def _record(self, stepping: Sequence[int], starting: Sequence[int], seen: Seen) -> None:
        for row in stepping:
            lane = self.lanes[row]
            lane.steps += len(lane.next_actions())
            assert lane.chosen is not None
            lane.actions.append(lane.chosen)
        for row in (*stepping, *starting):
            lane = self.lanes[row]
            look = seen.get(row)
            if isinstance(look, Look):
                self._add(lane, look)
                continue
            lane.fault = lane.fault or look
            if not lane.observations:  # a chunk that nobody executed, for whoever looks at the last one
                self._add(lane, self._nothing(lane))
                if not lane.request.horizon:
                    continue
                lane.actions.append(np.zeros(self.chunk, np.float32))
            self._add(lane, self._nothing(lane))

    def _add(self, lane: _Lane, look: Look) -> None:
        lane.observations.append(look.observation)
        lane.success = look.success or (lane.latched and lane.success)
        lane.over, lane.terminated = look.over, look.terminated
        if len(lane.observations) > 1:
            lane.rewards.append(look.reward)
        if self.looks.render is not None:
            lane.frames = [*(lane.frames if self.looks.keep else ()), look.frames]

    def _nothing(self, lane: _Lane) -> Look:
        """What stands for what an episode that cannot go on would have shown: what it showed last."""
        frames = lane.frames[-1] if lane.frames else {} if self.looks.render is None else black(self.looks.render, ())
        observation = lane.observations[-1] if lane.observations else np.zeros(self.size, np.float32)
        return Look(observation, False, frames)

    def _last(self, row: int) -> bool:
        """Whether the chosen chunk reaches the horizon."""
        lane = self.lanes[row]
        return lane.steps + len(lane.next_actions()) >= lane.request.horizon

    def _over(self, lane: _Lane) -> bool:
        over = lane.stopped or lane.over or lane.fault is not None
        solved = self.looks.ends_on_success and lane.latched and lane.success and lane.steps > 0
        return over or lane.steps >= lane.request.horizon or solved

    def _replays(self, rows: Sequence[int]) -> list[Replay]:
        requests = [self.lanes[row].request for row in rows]
        return [
            Replay(row, request.environment, request.seed, self.lanes[row].executed())
            for row, request in zip(rows, requests, strict=True)
        ]


def _common_chunk(known: Mapping[str, EnvSpec]) -> int:
    """The chunk of all specs."""
    chunks = {spec.chunk: name for name, spec in known.items()}
    if len(chunks) > 1:
        different = ", ".join(f"{name} has {chunk}" for chunk, name in chunks.items())
        raise UsageError(f"one run needs environments of one chunk, and {different}: say one chunk for all")
    return next(iter(chunks), 1)


def _homes(requests: Sequence[EpisodeRequest], workers: int) -> list[int]:
    """The worker of each request: whole groups, in order, to whoever has the fewest steps to make."""
    home: dict[tuple[str, int], int] = {}
    steps: dict[tuple[str, int], int] = {}
    for request in requests:
        group = (request.environment, request.seed)
        steps[group] = steps.get(group, 0) + request.horizon
    load = [0] * workers
    for group, work in steps.items():
        home[group] = load.index(min(load))
        load[home[group]] += work
    return [home[request.environment, request.seed] for request in requests]
