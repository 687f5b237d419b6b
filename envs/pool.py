"""Many episodes in step, over processes, in one deterministic order."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..machine import cores
from .demonstrations import Demonstration as Demonstration
from .env_checker import LANES
from .episodes import Episode as Episode
from .episodes import EpisodeRequest as EpisodeRequest
from .episodes import EpisodeRun, Stage
from .joining import Joined, join
from .oracle import require_oracle
from .process import Call, Here, Process, exchange
from .simulator import ACTION, STATE, EnvSpec, Feature, View, spec_of, specs
from .worker import Looks

logger = logging.getLogger(__name__)

Act = Callable[..., NDArray[Any]]
"""(rows [n], observations [n, D]) -> actions [n, C, A]; rows index the requests, ascending. With ``see`` a third
argument: frames of the same rows, camera -> [n, size, size, 3] uint8."""

Stop = Callable[..., NDArray[np.bool_]]
"""(rows [n], observations [n, D]) -> bool [n]; True ends the episode. With ``see`` frames too, as for ``act``."""

PIPELINED = 64
"""Episodes from which on simulators and policy work at the same time."""


class Pool:
    """Simulators for a whole run: built once, used by every ``run`` and ``demonstrate``.

    Groups of requests with equal (environment, seed) share one reset and one worker, chosen before the
    first step. At every tick each live episode makes one chunk, and room is filled in the order of the
    requests, so what ``act`` is called with depends neither on the number of workers nor on who is faster.

    An environment is tried for about a second before it is first used (:func:`~.env_checker.check_env`). What does
    not hold is logged in a line. If its states cannot be restored, or cost more than its steps, every episode gets an
    instance of its own.

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
        pipeline_stages: with 2 the simulators step one half of the episodes while the policy decides for the other;
            with 1 they take turns. None is 2 from 64 episodes on, whether there are worker processes or not.

    Attributes:
        environments, chunk, lanes, pipeline_stages: as given.
        faults: episodes so far that could not go on.

    Raises:
        UsageError: an unknown environment, with the nearest valid names, or environments of different chunks.
    """

    def __init__(
        self,
        environments: Sequence[str],
        *,
        chunk: int | None = None,
        workers: int | None = None,
        lanes: int = LANES,
        pipeline_stages: int | None = None,
    ) -> None:
        known = specs(environments)
        chunk = _common_chunk(known) if chunk is None else chunk
        if chunk < 1 or lanes < 1 or (workers is not None and workers < 0):
            raise ValueError(f"Pool: chunk ({chunk}) and lanes ({lanes}) start at 1, workers ({workers}) at 0")
        if pipeline_stages not in (None, 1, 2):
            raise ValueError(f"Pool: pipeline_stages ({pipeline_stages}) is 1, 2 or None")
        self.environments = tuple(dict.fromkeys(environments))
        self.chunk, self.lanes, self.pipeline_stages = chunk, lanes, pipeline_stages
        count = cores() if workers is None else workers
        self._workers: list[Here | Process] = [Process(known) for _ in range(count)] or [Here(known)]
        self._painters: list[Here | Process] = self._workers if count else [Process(known)]
        for worker in self._workers:
            worker.start()
        self.faults = 0
        self._own_cpu = 0.0
        self._described: dict[str, Joined] = {}

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
        return self._description(environment).features

    def sizes(self, environment: str) -> tuple[int, int]:
        """(D, A): the sizes of an observation and of an action; raises as ``features``."""
        features = self.features(environment)
        return features[STATE].shape[0], features[ACTION].shape[0]

    def cameras(self, environment: str) -> tuple[str, ...]:
        """Whose pictures are taken where a view names no camera; raises as ``features``."""
        return self._description(environment).cameras

    def layout(self, environment: str) -> Mapping[str, slice]:
        """Where things stand in an observation, as its spec or a dictionary of goals says; raises as ``features``."""
        return self._description(environment).layout

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
            modes = {name: self._described[name].mode for name in environments}
            if render is not None:  # one instance draws for all, where it can
                modes = {name: replace(mode, own=False) for name, mode in modes.items()}
            room = min([self.lanes, *(mode.room for mode in modes.values() if mode.room)])
            looks = Looks(oracle, rewards, render)
            stages = self.pipeline_stages or (2 if len(requests) >= PIPELINED else 1)
            ends = oracle and stop is None and not rewards
            run = EpisodeRun(
                *(workers, requests, room, looks, modes, shape),
                stages=stages,
                keep=keep,
                watched=keep or stop is not None,
                ends_on_success=ends,
            )
            with closing(run.board):
                while (stage := run.collect()) is not None:
                    self._decide(run, stage, act, stop, see)
                    run.send(stage)
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
        workers = self._workers if render is None else self._painters
        count, mode = len(workers), self._description(environment).mode
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

    def _decide(self, run: EpisodeRun, stage: Stage, act: Act, stop: Stop | None, see: bool) -> None:
        """Ask ``stop`` of what was stepped, and ``act`` for what goes on; their time is not the pool's."""
        if stop is not None and len(stage.stepped):
            seen = run.seen(stage.stepped, see)
            with self._counted(-1):
                answer = stop(stage.stepped, *seen)
            run.end(stage.stepped, answer)
        rows = run.live(stage)
        if len(rows):
            seen = run.seen(rows, see)
            with self._counted(-1):
                actions = act(rows, *seen)
            run.choose(rows, actions)

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

    def _description(self, environment: str) -> Joined:
        self._check(environment)
        if environment not in self._described:
            self._describe([environment], None)
        return self._described[environment]

    def _describe(self, environments: Sequence[str], view: View | None) -> None:
        """Ask for features and cameras, and have what was not tried in this process tried."""
        with self._counted():
            self._described |= join(self._workers if view is None else self._painters, environments, view)

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


def _common_chunk(known: Mapping[str, EnvSpec]) -> int:
    """The chunk of all specs."""
    chunks = {spec.chunk: name for name, spec in known.items()}
    if len(chunks) > 1:
        different = ", ".join(f"{name} has {chunk}" for chunk, name in chunks.items())
        raise UsageError(f"one run needs environments of one chunk, and {different}: say one chunk for all")
    return next(iter(chunks), 1)
