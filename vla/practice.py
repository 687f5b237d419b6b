"""Perturbed demonstrations of other tasks, and the progress critic that is pretrained on them.

An environment joins by its spec's ``practice``. Success is read, which is the point: labels of *other* tasks teach
what success looks like, and those of the task at hand are never touched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ..envs.demonstrations import Demonstration
    from ..envs.pool import Episode, Pool
    from ..rewards.progress.pretrained_critics import PretrainedCritic, Pretraining

VERSION = 2
"""Of practice and pretraining; another one makes everything anew."""

FIRST_SEED = 60_000_000
"""Practice begins at this place of the split "train", far from where runs learn."""


@dataclass(frozen=True, eq=False)
class Practice:
    """What one task gives: demonstrations, and episodes that end as soon as they succeed."""

    environment: str
    demonstrations: list[Demonstration]
    episodes: list[Episode]


def family(environment: str) -> str:
    """The first word of an environment's name: "drawer" of drawer-open and drawer-close, "push" of push and push-back.

    Tasks of one family share objects or motions, so whoever leaves a task out leaves its family out.
    """
    return environment.rpartition("/")[2].split("-")[0]


def other_tasks(exclude: Sequence[str]) -> list[str]:
    """All environments whose experts go astray in the same way, but for those of the families that are left out.

    Raises:
        UsageError: the environments have no way to go astray in, or different ones.
    """
    from ..envs.simulator import registered, resolve, spec_of
    from ..errors import UsageError

    ways = {spec_of(resolve(name)).practice for name in exclude}
    if len(ways) > 1 or None in ways:
        raise UsageError(
            f"{', '.join(exclude)}: their EnvSpecs have no common practice, which a pretrained critic needs"
        )
    left_out = {family(name) for name in exclude}
    return [name for name in registered() if spec_of(name).practice in ways and family(name) not in left_out]


def practise(pool: Pool, environment: str, *, demonstrations: int, episodes: int, seed: int = 0) -> Practice:
    """Demonstrations and disturbed episodes of one task.

    Raises:
        OracleSealed: inside a sealed block, because success is read.
    """
    from ..envs.pool import EpisodeRequest
    from ..envs.simulator import spec_of
    from ..envs.splits import seeds

    astray = spec_of(environment).practice
    assert astray is not None
    first = FIRST_SEED + 10_000 * seed
    demonstrated = pool.demonstrate(environment, seeds("train", demonstrations, first), horizon=350, settle=20)
    horizon = min(max(150, max(len(d.actions) for d in demonstrated) * 6 // 5), 250)
    requests = [EpisodeRequest(environment, s, horizon) for s in seeds("train", episodes, first + 1000)]
    experts = [astray(environment, request.seed, horizon, pool.chunk) for request in requests]

    def act(rows: NDArray[np.int64], observations: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.stack([experts[row](observation) for row, observation in zip(rows, observations, strict=True)])

    return Practice(environment, demonstrated, pool.run(requests, act, oracle=True))


def pretrained_critic(
    exclude: Sequence[str], *, training: Pretraining | None = None, episodes: int = 32, quiet: bool = False
) -> PretrainedCritic:
    """A critic for states that learned from all tasks like these but them and their families; adapt it next.

    Made at first use and kept in the cache: practice in a task once (2 to 3 CPU seconds each), the network once
    per set of tasks (about 15 CPU seconds per member and 1,000 steps).

    Args:
        exclude: environments or tasks that it will be used in. Their families are left out too.
        episodes: of practice per task; the training's seed decides their initial states too.

    Raises:
        OracleSealed: something is to be made inside a sealed block; call this before.
    """
    from ..cache import cache_folder
    from ..envs.simulator import resolve, spec_of
    from ..rewards.progress.pretrained_critics import PretrainedCritic, Pretraining
    from ..trainers.runs import checkpoint

    training = training or Pretraining()
    names = other_tasks(exclude)
    critic = PretrainedCritic(spec_of(resolve(exclude[0])).layout, training)
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

    from ..cache import cache_folder
    from ..envs.demonstrations import Demonstration
    from ..envs.pool import Episode, Pool
    from ..trainers.runs import checkpoint

    name = f"practice-v{VERSION}-{environment.rpartition('/')[2]}-e{episodes}-s{seed}"
    path = cache_folder() / name
    if not path.exists():
        with Pool([environment], workers=0) as pool:
            made = practise(pool, environment, demonstrations=4, episodes=episodes, seed=seed)
        records = {"demonstrations": made.demonstrations, "episodes": made.episodes}
        rows = {name: [asdict(each) for each in several] for name, several in records.items()}  # type: ignore[attr-defined]
        checkpoint.save(path, checkpoint.with_tensors(rows))
    arrays = checkpoint.with_arrays(checkpoint.load(path))
    demonstrations = [Demonstration(**row) for row in arrays["demonstrations"]]
    return Practice(environment, demonstrations, [Episode(**row) for row in arrays["episodes"]])
