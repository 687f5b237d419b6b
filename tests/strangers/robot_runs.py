"""Robot runs: what policies answer, episodes without a decision, decisions that nobody executed, videos, errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autotelic.envs.pool import Pool
from autotelic.errors import UsageError
from autotelic.trainers.learner import Optimisation, PolicyLearner
from autotelic.types import Evaluation, Rollout, Task
from autotelic.vla.actor import RobotActor
from autotelic.vla.chunk_policy import ChunkPolicy, Seen
from autotelic.vla.environments import make_task
from autotelic.vla.flow import FlowModel, FlowPolicy
from autotelic.vla.policy import ActionModel, ActionPolicy
from tests.robot_worlds import INSTRUCTION, shown, world

from .cases import By, Gives, GoesOn, Refuses, Required, autotelic, case

CHUNK = 4


def run_case(
    name: str,
    required: Required,
    *,
    kind: str = "policy errors",
    entry: str = "policy",
    by: By = "policy",
    slow: bool = False,
) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    return case(name, kind=kind, modality="vla", entry=entry, required=required, by=by, slow=slow)


class Strange(ChunkPolicy):
    """Stands still, but in every other episode it answers one number from the second chunk on."""

    def __init__(self, answer: float = 0.0, log_prob: float = 0.0) -> None:
        super().__init__(nn.Linear(1, 1), chunk=CHUNK, action_size=2, decisions=1, dims=2)
        self.answer, self.log_prob = answer, log_prob
        self.capabilities = frozenset({"exact"})
        self.begun = 0

    def begin(self, randoms: Sequence[torch.Generator], chunks: Sequence[int]) -> list[Any]:
        first, self.begun = self.begun + 1, self.begun + len(randoms)
        return [{"odd": (first + index) % 2 == 0, "chunk": 0} for index in range(len(randoms))]

    def decide(
        self, seen: Seen, randomness: Sequence[Any] | None, temperature: float
    ) -> tuple[Tensor, Mapping[str, Tensor], Tensor | None]:
        actions, logs = torch.zeros(len(seen), CHUNK, 2), torch.zeros(len(seen), 1)
        for row, random in enumerate(randomness or ()):
            if random["odd"] and random["chunk"]:
                actions[row], logs[row] = self.answer, self.log_prob
            random["chunk"] += 1
        return actions, {"chosen": actions.mean(1)}, logs

    def score(self, seen: Seen, stored: Mapping[str, Tensor]) -> Evaluation:
        return Evaluation(-(stored["chosen"] ** 2).sum(-1, keepdim=True) + 0 * self.module.weight.sum())

    def imitate(self, seen: Seen, actions: Tensor) -> dict[str, Tensor]:
        return {"chosen": actions.mean(1)}


def tasks(environment: str, count: int = 2, horizon: int = 8) -> list[Task]:
    return [make_task(world(environment), seed, horizon) for seed in range(count)]


def acted(policy: ChunkPolicy, environment: str = "plain", horizon: int = 8, **how: Any) -> list[Rollout]:
    asked = tasks(environment, horizon=horizon)
    with Pool([world(environment)], chunk=policy.chunk, workers=0) as pool:
        return RobotActor(policy, pool).act(asked, 1, **how)


def small(head: str = "gaussian", seed: int = 0) -> ChunkPolicy:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if head == "flow":
            return FlowPolicy(FlowModel(4, 2, chunk=CHUNK, hidden=16))
        return ActionPolicy(ActionModel(4, 2, chunk=CHUNK, head=head, hidden=16))  # type: ignore[arg-type]


# what a policy answers


def ends(rollouts: Sequence[Rollout]) -> list[Any]:
    """Steps of each episode, and whether it failed for a reason that names its environment and seed."""
    failures = [getattr(rollout.output, "fault", None) for rollout in rollouts]
    named = [
        failure is not None and rollout.output.environment in failure and f"seed {rollout.output.seed}" in failure
        for failure, rollout in zip(failures, rollouts, strict=True)
    ]
    return [[rollout.output.steps for rollout in rollouts], named]


for _what, _answer in {"NaN": math.nan, "infinity": math.inf, "minus infinity": -math.inf}.items():

    @run_case(f"a policy answers {_what} in one of two episodes", Gives([[8, 4], [False, True]]))
    def broken_actions(folder: Path, answer: float = _answer) -> object:
        return ends(acted(Strange(answer)))

    @run_case(f"a policy's log-probability is {_what} in one of two episodes", Gives([[8, 4], [False, True]]))
    def broken_log_probs(folder: Path, answer: float = _answer) -> object:
        return ends(acted(Strange(0.1, answer)))


@run_case("a policy answers NaN: that episode is a failure", Gives([False, False]))
def broken_is_failed(folder: Path) -> object:
    return [rollout.output.success for rollout in acted(Strange(math.nan), mode="evaluate", oracle=True)]


@run_case("a policy answers 1e30: cut to the box", Gives([[8, 8], True]))
def huge_actions(folder: Path) -> object:
    rollouts = acted(Strange(1e30))
    finite = all(np.isfinite(rollout.output.observations).all() for rollout in rollouts)
    return [[rollout.output.steps for rollout in rollouts], finite]


@run_case("learning from episodes that failed half-way", Gives(True))
def learned_from(folder: Path) -> object:
    policy = Strange(math.nan)
    rollouts = acted(policy)
    batch = policy.collate(rollouts)
    return bool(all(t.isfinite().all() for t in batch.payload.values() if isinstance(t, Tensor)))


@run_case(
    "vla B8: NaN observations are not the policy's", Gives([[8, True], [4, True]]), entry="environment", by="user"
)
def broken_observations(folder: Path) -> object:
    rollouts = acted(small(), "breaks")
    return [[r.output.steps, bool(r.payload["states"].isfinite().all())] for r in rollouts]


@run_case("a policy decides on a NaN state", Refuses("observation"), entry="policy", by="user")
def asked_nan(folder: Path) -> object:
    states = torch.tensor([[0.0, math.nan, 0.0, 0.0]])
    return small().choose(Seen([INSTRUCTION], states), None).actions.tolist()


# progress models


class Answers:
    """A progress model that answers the same whatever happens."""

    kind = "absolute"

    def __init__(self, answer: float, kind: str = "absolute") -> None:
        self.answer, self.kind = answer, kind

    def __call__(self, observations: Any, initial: Any, instructions: Sequence[str], references: Any = None) -> Any:
        return np.array([self.answer, 0.5])


for _kind, _least in {"absolute": 0.0, "pairwise": -1.0}.items():

    @run_case(
        f"a progress model ({_kind}) answers NaN", Gives([_least, 0.5]), entry="critic", kind="numbers", by="user"
    )
    def nan_progress(folder: Path, kind: str = _kind) -> object:
        from autotelic.rewards.progress.estimates import ask

        model: Any = Answers(math.nan, kind)
        return ask(model, np.zeros((2, 4), np.float32), np.zeros((2, 4), np.float32), ["a", "b"]).tolist()


@run_case("a progress model answers 7", Refuses("Answers.*7"), entry="critic", kind="numbers", by="user")
def wide_progress(folder: Path) -> object:
    from autotelic.rewards.progress.estimates import ask

    model: Any = Answers(7.0)
    return ask(model, np.zeros((2, 4), np.float32), np.zeros((2, 4), np.float32), ["a", "b"]).tolist()


# episodes without a decision


@run_case("vla B3: success at reset, in evaluation", Gives([True, True]), kind="environments", by="user")
def done_at_reset(folder: Path) -> object:
    rollouts = acted(small(), "easy", mode="evaluate", greedy=True, oracle=True)
    return [rollout.output.success for rollout in rollouts]


for _head in ("gaussian", "tokens", "flow"):

    @run_case(f"vla B3: success at reset, in training a {_head} policy", GoesOn(), kind="environments", by="user")
    def trained_at_reset(folder: Path, head: str = _head) -> object:
        from autotelic.trainers.advantages import grpo
        from autotelic.trainers.objectives import PPOClip

        policy = small(head)
        empty, full = acted(policy, "easy", oracle=True), acted(policy)
        for rollout in (*empty, *full):
            rollout.scores["total"] = float(rollout.task.seed)
        learner = PolicyLearner(policy, PPOClip(), Optimisation(1e-3), advantage=grpo())
        for some in (empty, [*empty, *full], full):
            groups = [replace(rollout, group="one") for rollout in some]
            learner.update(groups)
        return [bool(p.isfinite().all()) for p in policy.parameters()]


@run_case("vla B3: progress of an episode without a decision", Gives(0.0), kind="environments", by="user")
def progress_of_nothing(folder: Path) -> object:
    from autotelic.rewards.progress.estimates import FinalProgress

    return FinalProgress(0.5)([SimpleNamespace(scores={"progress": []}, output=None)], [INSTRUCTION])[0]


@run_case("vla B3: episodes without a decision are scored in hindsight", Gives([0.0]), kind="environments", by="user")
def hindsight_of_nothing(folder: Path) -> object:
    from autotelic.rewards.progress.controls import Constant
    from autotelic.rewards.progress.estimates import EpisodeProgress

    return EpisodeProgress(Constant())([SimpleNamespace(observations=np.zeros((1, 4)), instruction="a")], ["a"])


# decisions that nobody executed


for _head, _learned in {"gaussian": [1, 7, 8], "tokens": [2, 14, 16]}.items():

    @run_case(f"vla B13: decisions of a {_head} policy that nobody executed", Gives(_learned), kind="cannot learn")
    def decisions(folder: Path, head: str = _head) -> object:
        return [int(acted(small(head), horizon=horizon)[0].mask.sum()) for horizon in (1, 7, 8)]


@run_case("vla B13: what was not executed changes no gradient", Gives(True), kind="cannot learn")
def unexecuted_gradient(folder: Path) -> object:
    policy = small()
    rollout = acted(policy, horizon=1)[0]
    changed = {**rollout.payload, "actions": rollout.payload["actions"].clone()}
    changed["actions"][:, 1:] += 0.3
    gradients = [_gradient(policy, [each]) for each in (rollout, replace(rollout, payload=changed))]
    return bool(torch.equal(*gradients) and gradients[0].norm() > 0)


def _gradient(policy: ChunkPolicy, rollouts: Sequence[Rollout]) -> Tensor:
    """Of the sum of their decisions' log-probabilities."""
    batch = policy.collate(rollouts)
    policy.backward(batch, Evaluation(batch.mask.float()))
    found = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    policy.module.zero_grad()
    return found


for _head in ("gaussian", "tokens"):

    @run_case(f"vla B13: cloning a {_head} policy learns nothing beyond a demonstration's end", Gives(True),
              kind="cannot learn", entry="dataset", by="user")  # fmt: skip
    def beyond_the_end(folder: Path, head: str = _head) -> object:
        task = make_task(world("plain"), 0, 8)
        clones = []
        for strange in (False, True):
            policy = small(head)
            (rollout,) = policy.encode([task], [shown(3)])
            if strange:  # what stands in chunks beyond the end is arbitrary
                rollout.payload["actions"][-1, 1:] = 0
            clones.append(_cloned(policy, rollout))
        return all(torch.equal(one, other) for one, other in zip(*clones, strict=True))


def _cloned(policy: ChunkPolicy, rollout: Rollout) -> list[Tensor]:
    from autotelic.vla.cloning import Cloning, clone

    clone(policy, [rollout], Cloning(steps=3, batch=8))
    return [parameter.detach() for parameter in policy.parameters()]


@run_case("vla B13: an environment that ends at success is not recorded beyond it", Gives(0), kind="cannot learn",
          entry="environment", by="user")  # fmt: skip
def phantom_steps(folder: Path) -> object:
    name = world("ends")
    with Pool([name], workers=0) as pool:
        (demonstration,) = pool.demonstrate(name, [0], horizon=20, settle=10)
    return int((np.abs(np.diff(demonstration.observations, axis=0)).max(1) == 0).sum())


@run_case(
    "vla B10: a demonstration of one action is cloned", Gives(True), kind="robot data", entry="dataset", by="user"
)
def one_action(folder: Path) -> object:
    policy = small()
    (rollout,) = policy.encode([make_task(world("plain"), 0, 8)], [shown(1)])
    return all(bool(tensor.isfinite().all()) for tensor in [*_cloned(policy, rollout), policy.module.std])  # type: ignore[arg-type]


# options

OPTIONS: dict[str, tuple[str, Any]] = {
    "rho": ("rho", math.nan),
    "a rho above 1": ("rho", 1.5),
    "frame_size": ("frame_size", 0),
    "chunk": ("chunk", -1),
    "demonstrations": ("demonstrations", 0),
    "bc_steps": ("bc_steps", -5),
    "max_episode_steps": ("max_episode_steps", -3),
    "settle": ("settle", -1),
    "videos": ("videos", -1),
    "workers": ("workers", -2),
    "threshold": ("threshold", math.nan),
    "completion": ("completion", 2.0),
    "horizon_shares": ("horizon_shares", (0.0,)),
    "a NaN among horizon_shares": ("horizon_shares", (math.nan, 1.0)),
    "no horizon_shares": ("horizon_shares", ()),
    "frame_steps": ("frame_steps", 0),
    "play": ("play", -1),
}
for _what, (_field, _value) in OPTIONS.items():

    @run_case(f"option out of range: {_what}", Refuses("--" + _field.replace("_", "-")), kind="numbers", entry="option",
              by="user")  # fmt: skip
    def out_of_range(folder: Path, field: str = _field, value: Any = _value) -> object:
        from autotelic.vla.recipes.best_progress import Config

        return getattr(Config(**{field: value}), field)


# videos


class Unpainted:
    """A pool that cannot be filmed, for a reason."""

    def __init__(self, reason: Exception) -> None:
        self.reason, self.chunk, self.environments = reason, CHUNK, (world("plain"),)

    def sizes(self, environment: str) -> tuple[int, int]:
        return 4, 2

    def run(self, *_: Any, **__: Any) -> Any:
        raise self.reason


class FatalError(Exception):
    """As that of MuJoCo."""


def finished(folder: Path, pool: Any, before: str = "") -> dict[str, Any]:
    """What a run leaves at its end: whether card and report are there, and the line about missing videos."""
    from autotelic.trainers.runs.run_folder import RunFolder
    from autotelic.vla.setting import RobotConfig, Setting

    name, policy = world("plain"), small()
    run = RunFolder.create(folder / "run", recipe="vla/evolve_vla", config={}, command="")
    missing = run.samples / "videos/missing.txt"
    if before:
        missing.parent.mkdir(parents=True)
        missing.write_text(before)
    setting = Setting(RobotConfig(tasks=(name,), videos=1), (name,), pool, {name: [shown()]}, policy, [])
    setting.finish(run)
    line = missing.read_text() if missing.exists() else ""
    return {"whole": is_whole(run.path), "line": line}


def is_whole(run: Path) -> bool:
    """Whether a run has what its end writes besides films."""
    return all((run / name).is_file() for name in ("report.html", "README.md"))


REASONS: dict[str, Exception] = {
    "NotImplementedError": NotImplementedError("render"),
    "TypeError": TypeError("unexpected keyword render_mode"),
    "FatalError": FatalError("an OpenGL platform library has not been loaded"),
    "a dead worker": RuntimeError("3 environment workers died"),
    "an error of memory": MemoryError("no room"),
    "a refusal": UsageError("no camera"),
}
for _what, _reason in REASONS.items():

    @run_case(f"vla B1: filming ends in {_what}", Gives([True, True]), kind="half finished", entry="environment",
              by="machine")  # fmt: skip
    def unfilmed(folder: Path, reason: Exception = _reason) -> object:
        left = finished(folder, Unpainted(reason))
        return [left["whole"], str(reason) in left["line"] and left["line"].count("\n") == 1]


@run_case(
    "vla B1: card and report are written before anything is filmed", Gives(True), kind="half finished", by="machine"
)
def saved_first(folder: Path) -> object:
    with suppress(KeyboardInterrupt):
        finished(folder, Unpainted(KeyboardInterrupt()))  # type: ignore[arg-type]
    return is_whole(folder / "run")


@run_case("newcomer 8: videos after a resume take the line about missing ones away", Gives([True, ""]),
          kind="half finished", by="machine")  # fmt: skip
def filmed_at_last(folder: Path) -> object:
    class Filmed(Unpainted):
        def run(self, requests: Any, *_: Any, **__: Any) -> Any:
            from autotelic.envs.pool import Episode

            frames = {"main": np.zeros((2, 160, 160, 3), np.uint8)}
            steps = (np.zeros((2, 4), np.float32), np.zeros((1, CHUNK, 2), np.float32), CHUNK, False, True)
            return [Episode(request.environment, "", request.seed, *steps, frames) for request in requests]

    import autotelic.vla.actor as actor

    kept, actor._Session.rollout = actor._Session.rollout, lambda self, row, episode: SimpleNamespace(output=episode)  # type: ignore[method-assign,assignment,return-value]
    try:
        return list(finished(folder, Filmed(ValueError()), "No GL\n").values())
    finally:
        actor._Session.rollout = kept  # type: ignore[method-assign]


@run_case("frames of different sizes side by side", GoesOn(), kind="half finished", by="machine")
def uneven_film(folder: Path) -> object:
    from autotelic.envs.video import write_side_by_side

    small_one, large = np.zeros((2, 16, 16, 3), np.uint8), np.zeros((3, 32, 24, 3), np.uint8)
    return write_side_by_side(folder / "film", small_one, large, ("before", "after")).name


def whole_run(folder: Path, environment: str, recipe: str = "vla/evolve_vla", *words: object) -> list[bool]:
    """Whether a small run in one of the worlds left its policy, its report and its card."""
    (folder / "worlds.py").write_text(f"from tests.robot_worlds import world\nworld({environment!r})\n")
    options = ("--use", "worlds.py", "--tasks", f"strange/{environment}", "--bc-steps", 5, "--max-steps", 1, *words)
    small_run = ("--eval-episodes", 2, "--group-size", 2, "--tasks-per-step", 2, "--workers", 1, "--output-dir", "run")
    root = Path(__file__).parents[2]
    autotelic("run", recipe, *options, *small_run, folder=folder, PYTHONPATH=f"{root}/src:{root}")
    return [(folder / "run" / name).is_file() for name in ("policy/model.safetensors", "report.html", "README.md")]


@run_case("vla B1: a run in an environment that cannot be drawn is whole", Gives([True, True, True, True]),
          kind="half finished", entry="environment", by="user", slow=True)  # fmt: skip
def undrawn_run(folder: Path) -> object:
    left = whole_run(folder, "plain", "vla/evolve_vla", "--videos", 1)
    return [*left, (folder / "run/samples/videos/missing.txt").is_file()]


for _recipe in ("vla/evolve_vla", "vla/oracle_grpo", "vla/raft"):

    @run_case(f"vla B3: {_recipe} where half of the states are successes at reset", Gives([True, True, True]),
              kind="environments", entry="environment", by="user", slow=True)  # fmt: skip
    def easy_run(folder: Path, recipe: str = _recipe) -> object:
        return whole_run(folder, "half", recipe, "--videos", 0)


@run_case("vla B8: a run in an environment that goes NaN is whole", Gives([True, True, True]),
          kind="environments", entry="environment", by="user", slow=True)  # fmt: skip
def breaking_run(folder: Path) -> object:
    return whole_run(folder, "breaks", "vla/evolve_vla", "--videos", 0)


# errors of what a user wrote


@run_case("vla section 7: success that reads an info that the reset lacks", Refuses("is_success.*robot_worlds.py"),
          kind="environments", entry="environment", by="user")  # fmt: skip
def success_raises(folder: Path) -> object:
    return acted(small(), "info", oracle=True)


@run_case("vla section 7: an expert with a misspelt name", Refuses("direction.*robot_worlds.py"),
          kind="environments", entry="environment", by="user")  # fmt: skip
def expert_raises(folder: Path) -> object:
    name = world("misspelt")
    with Pool([name], workers=0) as pool:
        return pool.demonstrate(name, [0], horizon=8, settle=0)


@run_case("vla section 7: a progress model with a misspelt name", Refuses("KeyError.*goal.*robot_runs.py"),
          kind="environments", entry="critic", by="user")  # fmt: skip
def model_raises(folder: Path) -> object:
    from autotelic.rewards.progress.estimates import ask

    class Mine(Answers):
        def __call__(self, *_: Any, **__: Any) -> Any:
            return {}["goal"]

    return ask(Mine(0.0), np.zeros((2, 4)), np.zeros((2, 4)), ["a", "b"])  # type: ignore[arg-type]


@run_case("vla section 7: a policy of one's own that raises", Refuses("KeyError.*weights.*robot_runs.py"),
          kind="environments", entry="policy", by="user")  # fmt: skip
def policy_raises(folder: Path) -> object:
    class Mine(Strange):
        def decide(self, *_: Any) -> Any:
            return {}["weights"]

    return acted(Mine())
