"""Episodes over worker processes: what was asked for, what happened, and the run that makes one of the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .board import Board, Layout
from .demonstrations import first_film, stacked
from .env_checker import Mode
from .process import Call, Here, Process, WorkerDied, collect, exchange
from .simulator import spec_of
from .worker import Faults, Looks, Replay, Tick

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


@dataclass(eq=False)
class Stage:
    """Episodes that step together.

    Attributes:
        waiting: rows that have not begun.
        room: episodes in progress at most.
        active: [n] rows in progress when it was last sent.
        stepped: [n] those of them that made a chunk then; the others began.
        sent: (worker, message, rows that step, rows that begin) of messages that are not answered.
    """

    waiting: deque[int]
    room: int
    active: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    stepped: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    sent: list[tuple[int, Call, NDArray[np.int64], list[int]]] = field(default_factory=list)


class EpisodeRun:
    """Who is live, on which worker, and what was seen, as arrays by row of the requests.

    In a tick every live episode of a stage makes one chunk, and room is filled in the order of the requests. With two
    stages the episodes of one step while somebody decides for the other.

    Args:
        room: episodes in progress at most.
        looks: what is read of states.
        keep: leave pictures on the episodes; watched: someone sees the last one too.
        ends_on_success: an episode ends where it has succeeded, if success is latched.
        shape: (D, A, C).
    """

    def __init__(
        self,
        workers: Sequence[Here | Process],
        requests: Sequence[EpisodeRequest],
        room: int,
        looks: Looks,
        modes: Mapping[str, Mode],
        shape: tuple[int, int, int],
        *,
        stages: int = 1,
        keep: bool = True,
        watched: bool = True,
        ends_on_success: bool = False,
    ) -> None:
        self.workers, self.requests, self.looks, self.modes = workers, requests, looks, modes
        self.keep, self.watched, self.ends_on_success = keep and looks.render is not None, watched, ends_on_success
        self.chunk = shape[2], shape[1]
        count, view = len(requests), looks.render
        cameras = {} if view is None else dict.fromkeys(view.cameras, view.size)
        layout = Layout(count, shape[0], *self.chunk, cameras)
        self.board = Board(layout, shared=any(worker.apart for worker in workers))
        self.horizons = np.array([request.horizon for request in requests], np.int64)
        chunks = int(-(-self.horizons.max(initial=0) // shape[2]))
        self.observations = np.zeros((count, chunks + 1, shape[0]), np.float32)
        self.actions = np.zeros((count, chunks, *self.chunk), np.float32)
        self.rewards = np.zeros((count, chunks), np.float32)
        self.films: list[list[dict[str, NDArray[np.uint8]]]] = [[] for _ in requests]
        self.made, self.steps = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self.stopped, self.success, self.over, self.terminated, self.failed = np.zeros((5, count), np.bool_)
        self.latched = np.array([spec_of(request.environment).latched for request in requests], np.bool_)
        self.faults: Faults = {}
        self.blamed: dict[int, list[str]] = {}
        self.home = np.array(_homes(requests, len(workers)), np.int64)
        self.ended: list[list[int]] = [[] for _ in workers]
        self.outstanding: list[deque[Call]] = [deque() for _ in workers]
        exchange([Call(worker, "begin", lambda: (self.board, modes, looks)) for worker in workers])
        self.stages = [Stage(deque(rows), -(-room // stages)) for rows in _parts(requests, stages)]
        self.turn = 0
        for stage in self.stages:
            self.send(stage)

    def collect(self) -> Stage | None:
        """The next stage in turn, once what it was sent is answered; None when every episode is over."""
        for _ in self.stages:
            stage = self.stages[self.turn]
            self.turn = (self.turn + 1) % len(self.stages)
            if stage.sent:
                break
        else:
            return None
        deaths: list[WorkerDied] = []
        for index, call, stepping, starting in stage.sent:
            assert self.outstanding[index][0] is call
            faults = collect(self.outstanding[index], deaths)
            self.outstanding[index].popleft()
            for row, why in faults.items():
                self._fail(row, why)
            self._record_steps(stepping)
            self._record_starts(starting)
        stage.sent.clear()
        return stage

    def live(self, stage: Stage) -> NDArray[np.int64]:
        """[n] rows of a stage that go on."""
        rows = stage.active
        return rows[~self._are_over(rows)]

    def seen(self, rows: NDArray[np.int64], see: bool) -> tuple[Any, ...]:
        """The latest observations [n, D] of these rows, and frames by camera [n, size, size, 3] if these are seen."""
        observations = self.observations[rows, self.made[rows]]
        frames = {camera: film[rows] for camera, film in self.board.frames.items()}
        return (observations, frames) if see else (observations,)

    def end(self, rows: NDArray[np.int64], answer: Any) -> None:
        """Mark what ``stop`` answered for rows."""
        answer = np.asarray(answer)
        if answer.shape != rows.shape:
            raise ValueError(f"stop returned shape {answer.shape}; expected bool [n] = {rows.shape}")
        self.stopped[rows] |= answer.astype(bool)

    def choose(self, rows: NDArray[np.int64], actions: Any) -> None:
        """Keep what ``act`` answered for the next tick; NaN and infinity end an episode as failed."""
        actions = np.asarray(actions, np.float32)
        expected = (len(rows), *self.chunk)
        if actions.shape != expected:
            raise ValueError(f"act returned shape {actions.shape}; expected [n, C, A] = {expected}")
        self.board.actions[rows] = actions
        for row in rows[~np.isfinite(actions).all((1, 2))].tolist():
            self._fail(row, self._placed(row, "act answered NaN or infinity"))

    def send(self, stage: Stage) -> None:
        """Have the chosen chunks executed and free room filled."""
        over = self._are_over(stage.active)
        for row in stage.active[over].tolist():
            self.ended[self.home[row]].append(row)
        old = stage.active[~over]
        new = [stage.waiting.popleft() for _ in range(min(len(stage.waiting), stage.room - len(old)))]
        stage.active, stage.stepped = np.concatenate((old, np.array(new, np.int64))), old
        for index, worker in enumerate(self.workers):
            stepping = old[self.home[old] == index]
            starting = [row for row in new if self.home[row] == index]
            if len(stepping) or starting:
                ended, self.ended[index] = self.ended[index], []
                arguments = partial(self._arguments, stepping, starting, ended)
                call = Call(worker, "tick", arguments, self._blame, partial(self._revive, index))
                self.outstanding[index].append(call)
                stage.sent.append((index, call, stepping, starting))
                call.send()

    def episodes(self) -> list[Episode]:
        """The finished episodes, in the order of the requests."""
        return [self._episode(row, request) for row, request in enumerate(self.requests)]

    def _episode(self, row: int, request: EpisodeRequest) -> Episode:
        made, oracle, whole = int(self.made[row]), self.looks.oracle, not self.failed[row]
        return Episode(
            request.environment,
            spec_of(request.environment).told(request.seed),
            request.seed,
            self.observations[row, : made + 1].copy(),
            self.actions[row, :made].copy(),
            int(self.steps[row]),
            bool(self.stopped[row]),
            bool(self.success[row] and whole) if oracle else None,
            stacked(self.films[row]) if self.keep else None,
            self.faults.get(row),
            bool(self.terminated[row] and whole) if oracle else None,
            self.rewards[row, :made].copy() if self.looks.rewards else None,
        )

    def _arguments(self, stepping: NDArray[np.int64], starting: Sequence[int], ended: Sequence[int]) -> tuple[Tick]:
        """A tick of the rows that can go on."""
        going = stepping[~self.failed[stepping]]
        counts = self._counts(going)
        new = [row for row in starting if not self.failed[row]]
        asked = [(row, self.requests[row].environment, self.requests[row].seed) for row in new]
        last = going[self.steps[going] + counts >= self.horizons[going]]
        over = [*ended, *stepping[self.failed[stepping]].tolist()]
        return (Tick(going, counts, over, asked, frozenset() if self.watched else frozenset(last.tolist())),)

    def _counts(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """[n] actions of a chunk that fit below the horizon."""
        counts: NDArray[np.int64] = np.minimum(self.chunk[0], self.horizons[rows] - self.steps[rows])
        return counts

    def _are_over(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        steps = self.steps[rows]
        over = self.stopped[rows] | self.over[rows] | self.failed[rows] | (steps >= self.horizons[rows])
        if self.ends_on_success:
            over |= self.latched[rows] & self.success[rows] & (steps > 0)
        return over

    def _record_steps(self, rows: NDArray[np.int64]) -> None:
        """Take in the chunks that were made; who failed has seen nothing new."""
        made = self.made[rows]
        self.actions[rows, made] = self.board.actions[rows]
        self.steps[rows] += self._counts(rows)
        self.made[rows] = made + 1
        whole = rows[~self.failed[rows]]
        self.observations[rows, made + 1] = self.observations[rows, made]
        self.rewards[whole, self.made[whole] - 1] = self.board.rewards[whole]
        self._look(whole)
        self._film(rows)

    def _record_starts(self, rows: Sequence[int]) -> None:
        """Take in first observations. Who could not begin has zeros, and a chunk of zeros that nobody executed."""
        started = np.array(rows, np.int64)
        self._look(started[~self.failed[started]])
        self._film(started)
        lost = started[self.failed[started] & (self.horizons[started] > 0)]
        self.made[lost] = 1
        self._film(lost)

    def _look(self, rows: NDArray[np.int64]) -> None:
        board = self.board
        self.observations[rows, self.made[rows]] = board.observations[rows]
        if self.looks.oracle:
            self.success[rows] = board.success[rows] | (self.latched[rows] & self.success[rows])
            self.over[rows], self.terminated[rows] = board.over[rows], board.terminated[rows]

    def _film(self, rows: NDArray[np.int64]) -> None:
        if self.keep:
            for row in rows.tolist():
                self.films[row].append({camera: film[row].copy() for camera, film in self.board.frames.items()})

    def _fail(self, row: int, why: str) -> None:
        self.failed[row] = True
        self.faults.setdefault(row, why)

    def _placed(self, row: int, why: str) -> str:
        request = self.requests[row]
        return f"{request.environment}, seed {request.seed}, after step {self.steps[row]}: {why}"

    def _blame(self, death: WorkerDied) -> bool:
        """Note which episode a worker died of; one that does it again is over."""
        if not 0 <= death.row < len(self.requests):
            return False
        blamed = self.blamed.setdefault(death.row, [])
        blamed.append(str(death))
        if len(blamed) > 1 or sum(map(len, self.blamed.values())) > PATIENCE:
            why = f"its worker process died ({death}), {len(blamed)} times"
            self._fail(death.row, self._placed(death.row, why))
        return True

    def _revive(self, index: int, worker: Here | Process) -> None:
        """Bring the episodes of a worker that died back to where they were, if they come there."""
        worker.ask("begin", self.board, self.modes, self.looks)
        worker.answer()
        begun = np.concatenate([stage.active for stage in self.stages])
        new = {row for stage in self.stages for *_, starting in stage.sent for row in starting}
        rows = begun[(self.home[begun] == index) & ~self._are_over(begun)]
        rows = np.array([row for row in rows.tolist() if row not in new], np.int64)
        worker.ask("replay", [self._replayed(row) for row in rows.tolist()])
        faults = worker.answer()
        for row in rows.tolist():
            last, found = self.observations[row, self.made[row]], self.board.observations[row]
            if row in faults:
                self._fail(row, self._placed(row, f"in its replay after a worker died: {faults[row]}"))
            elif not np.array_equal(found, last):
                why = f"a worker died, and the replay led elsewhere (by up to {np.abs(found - last).max():.2g})"
                self._fail(row, self._placed(row, f"{why}: not deterministic"))

    def _replayed(self, row: int) -> Replay:
        """What was executed so far, one array [c, A] per chunk."""
        request, steps, size = self.requests[row], int(self.steps[row]), self.chunk[0]
        executed = [self.actions[row, chunk, : steps - chunk * size] for chunk in range(int(self.made[row]))]
        return Replay(row, request.environment, request.seed, executed)


def _parts(requests: Sequence[EpisodeRequest], count: int) -> list[list[int]]:
    """Rows in so many parts of whole groups, in their order, about equally many groups in each."""
    groups: dict[tuple[str, int], list[int]] = {}
    for row, request in enumerate(requests):
        groups.setdefault((request.environment, request.seed), []).append(row)
    share = -(-len(groups) // count)
    members = list(groups.values())
    parts = [members[start : start + share] for start in range(0, len(members), share)]
    return [sorted(row for group in part for row in group) for part in parts]


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
