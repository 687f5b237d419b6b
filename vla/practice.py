"""Perturbed demonstrations of other tasks, and the progress critic that is pretrained on them.

The experts' chunks are disturbed in the ways in which a policy that imitated little goes wrong: it takes
things to be where they are not, it shakes, it stops half-way. Success is read, which is the point: labels
of *other* tasks teach what success looks like, and those of the task at hand are never touched.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ..envs.demonstrations import Demonstration
    from ..envs.pool import Episode, Pool
    from ..rewards.pretrained_critics import PretrainedCritic, Pretraining

VERSION = 1
"""Of practice and pretraining; another one makes everything anew."""

FIRST_SEED = 60_000_000
"""Practice begins at this place of the split "train", far from where runs learn."""

STEP = 0.01
"""Metres that a hand moves per step at full speed."""


@dataclass(frozen=True, eq=False)
class Practice:
    """What one task gives: demonstrations, and episodes that end as soon as they succeed."""

    environment: str
    demonstrations: list[Demonstration]
    episodes: list[Episode]


def family(environment: str) -> str:
    """The first word of a task's name: "drawer" of drawer-open and drawer-close, "push" of push, push-back, push-wall.

    Tasks of one family share objects or motions, so whoever leaves a task out leaves its family out.
    """
    return environment.removeprefix("metaworld/").split("-")[0]


def other_tasks(exclude: Sequence[str]) -> list[str]:
    """All MetaWorld tasks as environments, but for those of the families that are left out."""
    from ..envs.metaworld_tasks import TASKS

    left_out = {family(name) for name in exclude}
    return [f"metaworld/{task}" for task in TASKS if family(task) not in left_out]


def practise(pool: Pool, environment: str, *, demonstrations: int, episodes: int, seed: int = 0) -> Practice:
    """Demonstrations and disturbed episodes of one task.

    Raises:
        OracleSealed: inside a sealed block, because success is read.
    """
    from ..envs.pool import EpisodeRequest
    from ..envs.splits import seeds

    first = FIRST_SEED + 10_000 * seed
    demonstrated = pool.demonstrate(environment, seeds("train", demonstrations, first), horizon=350, settle=20)
    horizon = min(max(150, max(len(d.actions) for d in demonstrated) * 6 // 5), 250)
    requests = [EpisodeRequest(environment, s, horizon) for s in seeds("train", episodes, first + 1000)]
    experts = [_DisturbedExpert(environment, request.seed, horizon, pool.chunk) for request in requests]

    def act(rows: NDArray[np.int64], observations: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.stack([experts[row](now) for row, now in zip(rows, observations, strict=True)])

    return Practice(environment, demonstrated, pool.run(requests, act, oracle=True))


def pretrained_critic(
    exclude: Sequence[str], *, training: Pretraining | None = None, episodes: int = 32, quiet: bool = False
) -> PretrainedCritic:
    """A critic for states that learned from all MetaWorld tasks but these and their families; adapt it next.

    Made at first use and kept in the cache: practice in a task once (2 to 3 CPU seconds each), the network once
    per set of tasks (about 15 CPU seconds per member and 1,000 steps).

    Args:
        exclude: environments or tasks that it will be used in. Their families are left out too.
        episodes: of practice per task; the training's seed decides their initial states too.

    Raises:
        OracleSealed: something is to be made inside a sealed block; call this before.
    """
    from ..cache import cache_folder
    from ..envs.metaworld import OBSERVATION
    from ..rewards.pretrained_critics import PretrainedCritic, Pretraining
    from ..trainers import checkpoint

    training = training or Pretraining()
    names = other_tasks(exclude)
    critic = PretrainedCritic(OBSERVATION, training)
    what = repr((sorted(names), sorted(asdict(training).items()), episodes))
    path = cache_folder() / f"pretrained-critic-v{VERSION}-{hashlib.sha256(what.encode()).hexdigest()[:16]}"
    if not path.exists():
        from rich.progress import track

        steps = track(names, "practising other tasks", disable=quiet, transient=True)
        critic.pretrain([_recorded(name, episodes, training.seed) for name in steps])
        checkpoint.save(path, critic.state_dict())
    critic.load_state_dict(checkpoint.load(path))
    return critic


def _recorded(environment: str, episodes: int, seed: int) -> Practice:
    """Practice from the cache, or made and put there."""
    import torch

    from ..cache import cache_folder
    from ..envs.demonstrations import Demonstration
    from ..envs.pool import Episode, Pool
    from ..trainers import checkpoint

    name = f"practice-v{VERSION}-{environment.removeprefix('metaworld/')}-e{episodes}-s{seed}"
    path = cache_folder() / name
    if not path.exists():
        with Pool([environment], workers=0) as pool:
            made = practise(pool, environment, demonstrations=4, episodes=episodes, seed=seed)
        records: dict[str, Any] = {"demonstrations": made.demonstrations, "episodes": made.episodes}
        state = {
            key: [
                {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in asdict(r).items()} for r in rows
            ]
            for key, rows in records.items()
        }
        checkpoint.save(path, state)
    arrays: dict[str, list[dict[str, Any]]] = {
        key: [{k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in row.items()} for row in rows]
        for key, rows in checkpoint.load(path).items()
    }
    demonstrations = [Demonstration(**row) for row in arrays["demonstrations"]]
    return Practice(environment, demonstrations, [Episode(**row) for row in arrays["episodes"]])


class _DisturbedExpert:
    """One episode's disturbed expert: an observation [21] in, a chunk of actions [C, 4] out.

    Within a chunk it plans ahead: the hand is taken to move as told, and everything else to stand still.
    """

    def __init__(self, environment: str, seed: int, horizon: int, chunk: int) -> None:
        from ..envs.physics import ENV_POLICY_MAP

        random = np.random.default_rng(seed)
        expert: Any = ENV_POLICY_MAP[environment.removeprefix("metaworld/")]
        self.expert, self.chunk, self.random = expert(), chunk, random
        way = random.choice(["clean", "mistaken", "shaking", "stopping", "mixed"], p=[0.15, 0.35, 0.2, 0.15, 0.15])
        self.shake = {"shaking": random.uniform(0.3, 1.5), "mixed": random.uniform(0.1, 0.8)}.get(way, 0.05)
        wrong = 0.01 * 10 ** random.uniform(0, 1) if way in ("mistaken", "mixed") else 0.0
        self.mistakes = wrong * random.standard_normal((3, 3)) * (1, 1, 0.5)
        self.stop = random.uniform(0.05, 0.5) * horizon if way == "stopping" else horizon
        self.noise = np.zeros(4)
        self.steps = 0

    def __call__(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        believed = observation.astype(np.float64)
        for mistake, where in zip(self.mistakes, (4, 11, 18), strict=True):
            if np.abs(observation[where : where + 3]).max() > 0:  # absent things stay absent
                believed[where : where + 3] += mistake
        actions = []
        for _ in range(self.chunk):
            self.noise = 0.9 * self.noise + 0.19**0.5 * self.random.standard_normal(4) * self.shake
            action = self.noise.copy()
            if self.steps < self.stop:
                full = np.concatenate([believed[:18], believed[:18], believed[18:]])
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    action += np.clip(self.expert.get_action(full), -1, 1)
            actions.append(np.clip(action, -1, 1))
            believed[:3] += STEP * actions[-1][:3]
            self.steps += 1
        return np.asarray(actions, np.float32)
