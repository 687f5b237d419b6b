"""``autotelic check``: an environment, a reward, a policy or a data file, tried before anything is trained with it.

autotelic check my_reward.py:tidy [--data questions.jsonl]   a reward of texts or images
autotelic check my_car.py                                    every plugin that the file registers
autotelic check my_car.py:MyPolicy --environment my/car      a policy, with an environment's sizes
autotelic check robotics/FetchReach-v4                       an environment by its registered name
autotelic check questions.jsonl                              a data file, also .csv, .tsv, .parquet
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from .doctor import Finding
from .errors import UsageError
from .listing import SCORED
from .options import CheckOptions
from .plugins import imported, is_place, module_at, names, registered_by, require
from .tables import READERS, canonical, read_table

Check = Callable[[str, Any, CheckOptions], Iterator[Finding]]


def findings(options: CheckOptions) -> Iterator[Finding]:
    """A line for everything that was tried.

    Raises:
        UsageError: there is nothing at that place, or nothing that can be tried.
    """
    if Path(options.what).suffix.lower() in READERS:
        yield from of_data(options.what)
        return
    for kind, name, value in _plugins(options.what, options.kind):
        check = CHECKS[kind]
        try:
            require(kind, value)
            yield from check(name, value, options)
        except Exception as error:
            line = " ".join(str(error).split())
            yield Finding(name, False, line if isinstance(error, ValueError) else f"{type(error).__name__}: {line}")


def _plugins(what: str, kind: str) -> list[tuple[str, str, Any]]:
    """(kind, name, plugin) of an environment's name, of what a place names, or of all in a file that has a check."""
    if not is_place(what) and what in names("environment"):
        from .envs.simulator import spec_of

        return [("environment", what, spec_of(what))]
    if ":" in what:
        value = imported(what)
        return [(_kind(what, value) if kind == "auto" else kind, what.rpartition(":")[2], value)]
    module = module_at(what)
    plugins = [each for each in registered_by(module) if each[0] in CHECKS]
    if hasattr(module, "build"):
        plugins.append(("recipe", what, module))
    if not plugins:
        raise UsageError(f"{what} registers nothing that can be tried: name what it defines, {what}:NAME")
    return plugins


def _kind(what: str, value: Any) -> str:
    from .envs.simulator import EnvSpec

    if isinstance(value, EnvSpec):
        raise UsageError(f"{what} is an EnvSpec: register it, and check the file")
    if isinstance(value, type) and {"decide", "score", "imitate"} <= set(dir(value)):
        return "policy"
    if callable(value):
        return "reward"
    raise UsageError(f"{what} is a {type(value).__name__}: an environment, a reward, a policy or a recipe can be tried")


# --- data --------------------------------------------------------------------------------------


def of_data(source: str) -> Iterator[Finding]:
    """Rows of a file or a dataset: does every one parse, which columns has it, what comes twice, is any a question?"""
    from .vlm.rows import decode, tasks_of

    try:
        table = read_table(source)
    except UsageError as error:
        yield Finding("rows", False, str(error))
        return
    rows = [row.values for row in table.rows]
    yield Finding("rows", True, str(len(rows)))
    counts = Counter(name for row in rows for name, value in row.items() if value is not None)
    partial = [f"{name} in {n} of {len(rows)}" for name, n in counts.items() if n < len(rows)]
    yield Finding("columns", None, ", ".join(name for name, n in counts.items() if n == len(rows)) or "none in all")
    if partial:
        yield Finding("columns of some", None, ", ".join(partial))
    first: dict[str, int] = {}
    twice = [(first[key], n) for n, row in enumerate(rows, 1) if first.setdefault(key := canonical(row), n) != n]
    text = f"{len(twice)} rows come twice, such as {twice[0][0]} and {twice[0][1]}" if twice else "none"
    yield Finding("duplicates", not twice, text)
    try:
        tasks = tasks_of(table)
        decode(tasks)
    except UsageError as error:
        yield Finding("questions", False, str(error))
        return
    answered = sum(task.reference is not None for task in tasks)
    pictures = sum(bool(task.images) for task in tasks)
    yield Finding("questions", True, f"{len(tasks)}, {answered} with an answer, {pictures} with pictures")


# --- rewards -----------------------------------------------------------------------------------


def of_reward(name: str, value: Any, options: CheckOptions) -> Iterator[Finding]:
    """Does the right answer score 1, and neither a constant nor an empty one? Is every score finite?"""
    from .rewards.reward import Reward

    value = value() if inspect.isclass(value) else value
    reward = value if isinstance(value, Reward) else Reward(value)
    columns = {column for _, term in reward.terms for column in _columns(term.function)}
    scored = next((what for column, what in SCORED.items() if column in columns), "text")
    if scored == "episode":
        yield from _of_episodes(name, reward, options)
    elif scored == "image" and not ("outputs" in columns and _scores_texts(reward)):
        yield from _of_images(name, reward)
    else:
        yield from _of_texts(name, reward, "references" in columns, options)


def _scores_texts(reward: Any) -> bool:
    """Whether outputs, whose kind a name does not tell, may be texts."""
    from .errors import RewardError
    from .types import Task

    try:
        _scores(reward, [Task("text", "What is 3 + 4?", reference="7")], ["7"])
    except RewardError:
        return False
    return True


def _columns(function: Any) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return []


def _of_texts(name: str, reward: Any, labelled: bool, options: CheckOptions) -> Iterator[Finding]:
    from .types import Task
    from .vlm.rows import read_rows
    from .vlm.verification import told

    sums = [(3, 4), (10, 5), (6, 2), (20, 1)]
    tasks = [Task(f"sum/{i}", f"What is {a} + {b}?", reference=str(a + b)) for i, (a, b) in enumerate(sums)]
    if options.data is not None:
        tasks = [task for task in read_rows(str(options.data)) if task.reference is not None or not labelled][:64]
    if not tasks:
        raise UsageError(f"{options.data} has no answers, and {name} reads references")
    wrong = told(tasks[0]) if labelled else "yes"
    answers = {
        "gold": [told(task) for task in tasks],
        "constant": [wrong] * len(tasks),
        "empty": [""] * len(tasks),
    }
    scores = {kind: _scores(reward, tasks, texts) for kind, texts in answers.items()}
    means = {kind: _mean(each) for kind, each in scores.items()}
    yield Finding(f"{name}: scores", True, f"{len(tasks)} finite ones for {len(tasks)} answers")
    if not labelled:
        shown = ", ".join(f"{kind} {mean:.3g}" for kind, mean in means.items() if kind != "gold")
        yield Finding(f"{name}: means", None, f"it reads no references; {shown}")
        return
    low = [(task, s) for task, s in zip(tasks, scores["gold"], strict=True) if s is None or s < 1 - 1e-6]
    text = f"{low[0][0].id}: {low[0][0].reference!r} scores {low[0][1]}" if low else "every right answer scores 1"
    yield Finding(f"{name}: gold answer", not low, text)
    different = len(set(answers["gold"])) > 1
    for kind in ("constant", "empty"):
        good = means[kind] < means["gold"] - 1e-6 or (kind == "constant" and not different)
        yield Finding(
            f"{name}: {kind} answer", good, f"mean {means[kind]:.3g}, the gold answers' is {means['gold']:.3g}"
        )


def _of_images(name: str, reward: Any) -> Iterator[Finding]:
    import torch

    from .types import Task

    tasks = [Task(f"picture/{i}", "a red square", category="check") for i in range(3)]
    pictures = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    pictures.append(torch.zeros(3, 64, 64))
    scores = _scores(reward, tasks, pictures)
    yield Finding(
        f"{name}: scores", True, f"finite ones: noise {scores[0]:.4g} and {scores[1]:.4g}, black {scores[2]:.4g}"
    )
    yield Finding(
        f"{name}: differences", len(set(scores)) > 1, "noise and black differ" if len(set(scores)) > 1 else "none"
    )
    again = _scores(reward, tasks, pictures)
    yield Finding(
        f"{name}: twice the same", scores == again, "equal" if scores == again else f"{again[0]} the second time"
    )


def _of_episodes(name: str, reward: Any, options: CheckOptions) -> Iterator[Finding]:
    from .envs.pool import EpisodeRequest, Pool
    from .envs.simulator import spec_of
    from .types import Task

    where = options.environment
    pool = Pool([where], workers=0)
    try:
        import numpy as np

        limit = min(50, spec_of(where).max_episode_steps)
        size = pool.sizes(where)[1]
        random = np.random.default_rng(0)

        def act(rows: Any, observations: Any) -> Any:
            return random.uniform(-1, 1, (len(rows), pool.chunk, size)).astype(np.float32)

        episodes = pool.run([EpisodeRequest(where, seed, limit) for seed in range(4)], act)
    finally:
        pool.close()
    tasks = [
        Task(f"episode/{i}", e.instruction, seed=e.seed, extra={"environment": where}) for i, e in enumerate(episodes)
    ]
    scores = _scores(reward, tasks, episodes)
    yield Finding(f"{name}: scores", True, f"finite ones: {', '.join(f'{s:.4g}' for s in scores)} in {where}")
    yield Finding(f"{name}: differences", len(set(scores)) > 1, "four random episodes are told apart or not at all")


def _scores(reward: Any, tasks: Sequence[Any], outputs: Sequence[Any]) -> list[Any]:
    """Checked scores: as many as samples, finite or None."""
    import torch

    from .trainers.scoring import score
    from .types import Rollout

    one = torch.ones(1, dtype=torch.bool)
    rollouts = [
        Rollout(t, o, {}, None, one, torch.zeros(1, dtype=torch.long)) for t, o in zip(tasks, outputs, strict=True)
    ]
    score(rollouts, reward)
    return [None if r.scores["total"] is None else float(torch.as_tensor(r.scores["total"]).sum()) for r in rollouts]


def _mean(scores: Sequence[float | None]) -> float:
    numbers = [score for score in scores if score is not None]
    return sum(numbers) / len(numbers) if numbers else float("nan")


# --- environments and policies -----------------------------------------------------------------


def of_environment(name: str, spec: Any, options: CheckOptions) -> Iterator[Finding]:
    """Does it keep what a run relies on (``envs/env_checker.py``), and does success come by what its expert does?"""
    from .envs.env_checker import check_env
    from .envs.simulator import View, make_simulator

    for trait in check_env(name, view=View()).traits:
        yield Finding(f"{name}: {trait.name}", trait.good, trait.text)
    simulator = make_simulator(name)
    try:
        yield from _by_expert(name, simulator, spec.max_episode_steps)
    finally:
        simulator.close()


def _by_expert(name: str, simulator: Any, horizon: int) -> Iterator[Finding]:
    if simulator.expert() is None:
        yield Finding(f"{name}: expert", None, "none: demonstrations have to come from a dataset")
        return
    won, broken = 0, ""
    for seed in range(3):
        try:
            simulator.reset(seed)
            expert = simulator.expert()
            for _ in range(horizon):
                if simulator.success():
                    break
                simulator.step(expert()[None])
            won += simulator.success()
        except Exception as error:
            broken = f"; the last time that it could not go on: {' '.join(str(error).split())}"
    yield Finding(f"{name}: expert", won > 0, f"succeeds from {won} of 3 starts within {horizon} steps{broken}")


def of_policy(name: str, policy: Any, options: CheckOptions) -> Iterator[Finding]:
    """Does it decide on a zero observation, in the right shape, and find what it chose again?"""
    import torch

    from .envs.simulator import DRAWN, make_simulator, spec_of
    from .vla.chunk_policy import Seen

    simulator = make_simulator(options.environment)
    sizes = (simulator.observation_size, simulator.action_size)
    cameras = simulator.cameras or (DRAWN,)
    simulator.close()
    made: Any = policy(*sizes, options.chunk) if callable(policy) else policy
    felt = len(range(sizes[0])[spec_of(options.environment).proprioception]) if made.sees == "frames" else sizes[0]
    size = made.view.size if made.view else 64
    black = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    frames = dict.fromkeys(cameras, black) if made.sees == "frames" else {}
    seen = Seen(["do it"] * 2, torch.zeros(2, felt), frames)
    chosen = made.choose(seen, None).actions
    fits = tuple(chosen.shape) == (2, options.chunk, sizes[1])
    yield Finding(
        f"{name}: decides", fits, f"actions {tuple(chosen.shape)}, needed are (2, {options.chunk}, {sizes[1]})"
    )
    finite = bool(torch.isfinite(torch.as_tensor(chosen)).all())
    yield Finding(f"{name}: finite", finite, "on a zero observation")
    equal = bool(torch.equal(torch.as_tensor(chosen), torch.as_tensor(made.choose(seen, None).actions)))
    yield Finding(f"{name}: greedy", equal, "the same twice" if equal else "another action the second time")
    random = [torch.Generator().manual_seed(i) for i in range(2)]
    drawn = made.choose(seen, made.begin(random, [1, 1]))
    _, stored, _ = made.decide(seen, made.begin([r.manual_seed(i) for i, r in enumerate(random)], [1, 1]), 1.0)
    stored = {**stored, "temperature": torch.ones(2)}
    again = made.score(seen, stored).log_probs
    gap = float((torch.as_tensor(drawn.log_probs) - again.detach().cpu()).abs().max())
    yield Finding(f"{name}: log-probabilities", gap < 1e-3, f"sampled and scored differ by {gap:.2g}")


def of_recipe(name: str, module: ModuleType, options: CheckOptions) -> Iterator[Finding]:
    """Has it a claim and presets that the command line can read?"""
    from .options import parse, run_options

    claim = (module.__doc__ or "").strip().partition("\n")[0]
    yield Finding(f"{name}: claim", bool(claim), claim or "the module has no docstring")
    parse(run_options(module.Config.tiny()), [], name)
    missing = [f for f in ("eval_episodes", "eval_offset") if not hasattr(module.Config(), f)]
    text = "autotelic eval can change it" if not missing else f"no {missing[0]}: autotelic eval cannot change it"
    yield Finding(f"{name}: config", not missing, text)


CHECKS: dict[str, Check] = {
    "environment": of_environment,
    "reward": of_reward,
    "policy": of_policy,
    "recipe": of_recipe,
}
