"""Many episodes in step, over processes, in one deterministic order."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from .oracle import require_oracle
from .process import Here, Process, WorkerDied
from .simulator import ACTION, STATE, EnvSpec, Feature, View, spec_of, specs
from .worker import Replay, Seen, Tick

logger = logging.getLogger(__name__)

Act = Callable[..., NDArray[Any]]
"""(rows [n], observations [n, D]) -> actions [n, C, A]; rows index the requests, ascending. With ``see`` a third
argument: frames of the same rows, camera -> [n, size, size, 3] uint8."""

Stop = Callable[..., NDArray[np.bool_]]
"""(rows [n], observations [n, D]) -> bool [n]; True ends the episode. With ``see`` frames too, as for ``act``."""

DEATHS = 3
"""A run gives up when this many workers have died in it."""


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
        success: latched over chunk ends; None when the oracle was not read.
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

    @property
    def frames(self) -> NDArray[np.uint8] | None:
        """[S + 1, size, size, 3] what the first camera saw: for judges that look at one film."""
        return first_film(self.images)


class Pool:
    """Simulators for a whole run: built once, used by every ``run`` and ``demonstrate``.

    Groups of requests with equal (environment, seed) share one reset and one worker, chosen before the
    first step. At every tick each live episode makes one chunk, and room is filled in the order of the
    requests, so what ``act`` is called with depends neither on the number of workers nor on who is faster.

    A worker that dies is replaced, and its episodes are replayed from seed and actions.

    Workers start without the caller's main script, so they import no torch and scripts need no
    ``if __name__ == "__main__"`` guard. Only if a registered spec refers to functions of that script do
    workers import it, and then the guard is needed.

    Args:
        environments: names that requests may use.
        chunk: C, actions per decision; None is what the specs say, which must be the same.
        workers: processes; None: one per core; 0: everything in this process. Pictures come from a worker
            process even then, because GL and torch do not share a process well.
        lanes: episodes in progress at most.

    Attributes:
        environments, chunk, lanes: as given.

    Raises:
        UsageError: an unknown environment, with the nearest valid names, or environments of different chunks.
    """

    def __init__(
        self, environments: Sequence[str], *, chunk: int | None = None, workers: int | None = None, lanes: int = 256
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
        self._own_cpu = 0.0
        self._described: dict[str, tuple[Mapping[str, Feature], tuple[str, ...]]] = {}

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

    def build(self) -> None:
        """Build every environment now, so that one that cannot be is refused at once; raises as ``features``."""
        missing = [name for name in self.environments if name not in self._described]
        shares = [(worker, missing[index :: len(self._workers)]) for index, worker in enumerate(self._workers)]
        calls = [_Call(worker, "describe", (share,)) for worker, share in shares if share]
        with self._counted():
            for call, answer in zip(calls, _exchange(calls, []), strict=True):
                self._described |= dict(zip(call.arguments[0], answer, strict=True))

    def run(
        self,
        requests: Sequence[EpisodeRequest],
        act: Act,
        *,
        stop: Stop | None = None,
        oracle: bool = False,
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
            oracle: read success at the start and at chunk ends. Without ``stop`` an episode ends as soon as
                it has succeeded, since nothing more can change; with ``stop`` it goes on until that or the
                horizon.
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
            RuntimeError: three workers died; the message holds the last one's traceback.
        """
        if oracle:
            require_oracle("success in Pool.run(oracle=True)")
        if see and render is None:
            raise ValueError("Pool.run(see=True) needs render=View(...): nobody takes pictures otherwise")
        if not (see or keep):
            render = None
        if not requests:
            return []
        environments = {request.environment for request in requests}
        sizes = {self.sizes(environment) for environment in environments}
        if len(sizes) > 1:
            raise ValueError(f"one run needs environments of one (observation size, action size), not {sorted(sizes)}")
        if render is not None and not render.cameras:
            cameras = {self.cameras(environment) for environment in environments}
            if len(cameras) > 1:
                raise UsageError(f"one run needs environments with the same cameras, not {sorted(cameras)}: name some")
            render = replace(render, cameras=cameras.pop())
        workers = self._workers if render is None else self._painters
        shape = (self.chunk, sizes.pop()[1])
        with self._counted():
            watched = keep or stop is not None
            run = _Run(workers, requests, self.lanes, oracle, render, keep, watched, oracle and stop is None)
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
                    run.choose(rows, actions, shape)
            return run.episodes(shape)

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
            RuntimeError: three workers died.
        """
        self._check(environment)
        workers = self._workers if render is None else self._painters
        count = len(workers)
        calls = [
            _Call(worker, "demonstrate", (environment, list(seeds[index::count]), horizon, settle, render))
            for index, worker in enumerate(workers[: len(seeds)])
        ]
        with self._counted():
            answers = _exchange(calls, [])
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

    def _description(self, environment: str) -> tuple[Mapping[str, Feature], tuple[str, ...]]:
        self._check(environment)
        if environment not in self._described:
            with self._counted():
                answers = _exchange([_Call(self._workers[0], "describe", ([environment],))], [])
            self._described[environment] = answers[0][0]
        return self._described[environment]

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

    def next_actions(self) -> NDArray[np.float32]:
        """[c, A] of the chosen chunk, what fits below the horizon."""
        assert self.chosen is not None
        return self.chosen[: self.request.horizon - self.steps]

    def executed(self) -> list[NDArray[np.float32]]:
        """[c, A] per chunk so far."""
        starts = range(0, self.steps, len(self.actions[0])) if self.actions else ()
        return [actions[: self.steps - start] for actions, start in zip(self.actions, starts, strict=True)]


class _Run:
    """The state of one :meth:`Pool.run`: who is live, on which worker, and what was seen.

    ``stepped`` are the rows that the last tick stepped (the others it started). ``keep`` leaves pictures on the
    episodes, ``watched`` says that someone looks at the last one too.
    """

    def __init__(
        self,
        workers: Sequence[Here | Process],
        requests: Sequence[EpisodeRequest],
        room: int,
        oracle: bool,
        render: View | None,
        keep: bool,
        watched: bool,
        ends_on_success: bool,
    ) -> None:
        self.workers, self.room = workers, room
        self.oracle, self.render, self.ends_on_success = oracle, render, ends_on_success
        self.keep, self.watched = keep, watched
        self.lanes = [_Lane(request) for request in requests]
        self.home = _homes(requests, len(workers))
        self.waiting = deque(range(len(requests)))
        self.active: list[int] = []
        self.stepped = np.zeros(0, np.int64)
        self.deaths: list[str] = []
        _exchange([_Call(worker, "clear", ()) for worker in workers], self.deaths)

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
                tick = Tick(
                    [(row, self.lanes[row].next_actions()) for row in stepping],
                    [(row, self.lanes[row].request.environment, self.lanes[row].request.seed) for row in starting],
                    self.oracle,
                    self.render,
                    frozenset() if self.watched else frozenset(filter(self._last, stepping)),
                )
                calls.append(_Call(worker, "tick", (tick,), partial(self._replays, stepping)))
                served.append((stepping, starting))
        for (stepping, starting), seen in zip(served, _exchange(calls, self.deaths), strict=True):
            self._record(stepping, starting, seen)
        return bool(self.active)

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

    def choose(self, rows: NDArray[np.int64], actions: NDArray[Any], shape: tuple[int, int]) -> None:
        """Keep what ``act`` answered for the next tick."""
        actions = np.asarray(actions, np.float32)
        expected = (len(rows), *shape)
        if actions.shape != expected:
            raise ValueError(f"act returned shape {actions.shape}; expected [n, C, A] = {expected}")
        broken = ~np.isfinite(actions).all((1, 2))
        if broken.any():
            row = rows[broken][0]
            raise ValueError(f"act returned NaN or infinity for request {row}: {self.lanes[row].request}")
        for row, chosen in zip(rows, actions, strict=True):
            self.lanes[row].chosen = chosen.copy()

    def episodes(self, shape: tuple[int, int]) -> list[Episode]:
        """The finished episodes, in the order of the requests."""
        nothing = np.zeros((0, *shape), np.float32)
        return [
            Episode(
                lane.request.environment,
                spec_of(lane.request.environment).instruction,
                lane.request.seed,
                np.stack(lane.observations),
                np.stack(lane.actions) if lane.actions else nothing,
                lane.steps,
                lane.stopped,
                lane.success if self.oracle else None,
                stacked(lane.frames) if self.render is not None and self.keep else None,
            )
            for lane in self.lanes
        ]

    def _record(self, stepping: Sequence[int], starting: Sequence[int], seen: Seen) -> None:
        for row in stepping:
            lane = self.lanes[row]
            lane.steps += len(lane.next_actions())
            assert lane.chosen is not None
            lane.actions.append(lane.chosen)
        for index, row in enumerate((*stepping, *starting)):
            lane = self.lanes[row]
            lane.observations.append(seen.observations[index])
            if self.oracle:
                lane.success |= seen.successes[index]
            if self.render is not None:
                lane.frames = [*(lane.frames if self.keep else ()), seen.frames[index]]

    def _last(self, row: int) -> bool:
        """Whether the chosen chunk reaches the horizon."""
        lane = self.lanes[row]
        return lane.steps + len(lane.next_actions()) >= lane.request.horizon

    def _over(self, lane: _Lane) -> bool:
        return lane.stopped or lane.steps >= lane.request.horizon or (self.ends_on_success and lane.success)

    def _replays(self, rows: Sequence[int]) -> list[Replay]:
        requests = [self.lanes[row].request for row in rows]
        return [
            Replay(row, request.environment, request.seed, self.lanes[row].executed())
            for row, request in zip(rows, requests, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class _Call:
    """One message to one worker; ``replays`` brings a replacement up to date if the worker dies."""

    worker: Here | Process
    command: str
    arguments: tuple[Any, ...]
    replays: Callable[[], list[Replay]] = list


def _exchange(calls: Sequence[_Call], deaths: list[str]) -> list[Any]:
    """Send all messages, then collect the answers in order, replacing workers that die."""
    for call in calls:
        call.worker.ask(call.command, *call.arguments)
    return [_insist(call, deaths) for call in calls]


def _insist(call: _Call, deaths: list[str]) -> Any:
    """The answer to a message that was sent, from the worker or from its replacement."""
    replaced = False
    while True:
        try:
            if replaced:
                call.worker.ask("replay", call.replays())
                call.worker.answer()
                call.worker.ask(call.command, *call.arguments)
            return call.worker.answer()
        except WorkerDied as death:
            deaths.append(str(death))
            if len(deaths) >= DEATHS:
                raise RuntimeError(f"{DEATHS} environment workers died, the last one thus:\n{death}") from None
            logger.warning("an environment worker died and is replaced, its episodes are replayed:\n%s", death)
            call.worker.start()
            replaced = True


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
