"""Do solvers learn what their scorers know, and what keeps the reward of CoMAS from running away?

    python benchmarks/comas.py [--quick] [--json FILE] [--seeds 0 1 2 3 4] [--arms ...]

CoMAS (arXiv 2510.08529) in a world small enough to see through: agents are tables of logits, and play the same game by
the same learner as ``vlm/comas`` does. A question has four answers, one of them right; the start answers at random, and
criticises with one of four arguments at random. What the start knows is how to score: of every answer and argument its
verdict is right with probability q, once and for all (a persuasive argument stays so). It says so in 72 of 100 cases,
the contrary in 8, "minor flaws" in 10 and nothing that can be read in 10. Scorers are trained like everybody else.

Arms: full (q = 0.8); no_scorer, where the critic grades what it criticises; no_critics, where scorers see the answer
alone; noise, where every verdict is drawn afresh, so that no argument persuades; and full for other q. Published, as
notes on the paper tell it: the solver's reward settles near 0.5; without scorers the reward climbs to 1.0; without
critics it drifts down. Expected besides: nothing is learned from a scorer at q = 0.5.

Figures: the probability of the right answer before and after ("accuracy"), that of a right verdict among grades 1 and 3
("verdict"), over all answers and arguments, and each role's mean reward in the first round and over the last fifth.

Settings were chosen on seeds from 100 on. Intervals are Student's t over seeds. A table generalises over nothing: what
one role learns does not change another, as it does in a language model, and it does not hear the history.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import platform
import random
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autotelic.statistics import mean_interval
from autotelic.trainers.advantages import ReinforcePlusPlus
from autotelic.trainers.curricula import Uniform
from autotelic.trainers.learner import Optimisation, PolicyLearner
from autotelic.trainers.loop import Experiment, Stage, train
from autotelic.trainers.objectives import PPOClip
from autotelic.trainers.policy import References, TorchPolicy
from autotelic.trainers.randomness import generator
from autotelic.trainers.runs.run_folder import RunFolder, versions
from autotelic.trainers.shaping import PerTokenKL
from autotelic.types import Batch, Evaluation, Key, Mode, Rollout, Task
from autotelic.vlm.discussion import CRITIC, SCORER, SOLVER, Discussion, Exchange, Interaction, Roles

ANSWERS, ARGUMENTS, ACTIONS = 4, 4, 4
NONE = -1e4
"""Logit of what cannot be done."""
GRADES = {"believed": 0.72, "contrary": 0.08, "minor": 0.1, "unreadable": 0.1}
SETTINGS: dict[str, Any] = {"agents": 2, "questions": 16, "steps": 150, "lr": 0.05, "beta": 0.01, "epochs": 2}
QUICK = {"steps": 10, "questions": 4}
ARMS: dict[str, dict[str, Any]] = {
    "full": {},
    "no_scorer": {"scorer": False},
    "no_critics": {"critics": 0},
    "noise": {"noise": True},
    "q_0.5": {"q": 0.5},
    "q_0.65": {"q": 0.65},
    "q_0.95": {"q": 0.95},
}
COMMAND = "python benchmarks/comas.py --json benchmarks/comas.json"


class Table(TorchPolicy):
    """Logits by the prompt, which is a row's name; an attempt is one decision."""

    capabilities = frozenset({"exact"})

    def __init__(self, rows: Mapping[Any, Sequence[float]]) -> None:
        table = nn.Embedding.from_pretrained(torch.tensor(list(rows.values())), freeze=False)
        super().__init__(table, micro_batch_rows=4096)
        self.rows = {name: row for row, name in enumerate(rows)}

    @torch.no_grad()
    def act(
        self, tasks: Sequence[Task], n: int, *, key: Key = (0,), mode: Mode = "train", greedy: bool = False
    ) -> list[Rollout]:
        asked = [(task, sample) for task in tasks for sample in range(n)]
        rows = torch.tensor([self.rows[task.prompt] for task, _ in asked])
        log_probs = self.module(rows).log_softmax(-1)
        noise = torch.stack([torch.rand(1, generator=generator(*key, task.id, sample)) for task, sample in asked])
        drawn = (log_probs.exp().cumsum(-1) < noise).sum(-1).clamp(max=log_probs.shape[-1] - 1)
        chosen = log_probs.argmax(-1) if greedy else drawn
        here = log_probs.gather(-1, chosen[:, None])
        one, first = torch.ones(1, dtype=torch.bool), torch.zeros(1, dtype=torch.long)
        return [
            Rollout(task, int(action), {"row": row[None], "action": action[None]}, log_prob, one, first)
            for (task, _), row, action, log_prob in zip(asked, rows, chosen, here, strict=True)
        ]

    def forward_decisions(self, batch: Batch, needs: frozenset[str], references: References) -> Evaluation:
        log_probs = self.module(batch.payload["row"]).log_softmax(-1)
        return Evaluation(log_probs.gather(-1, batch.payload["action"][..., None])[..., 0] * batch.mask)

    def probabilities(self, *names: Any) -> Tensor:
        """[N, ACTIONS]"""
        return self.module(torch.tensor([self.rows[name] for name in names])).detach().softmax(-1)


class TableRoles(Roles):
    """A prompt is what the role sees; the grades 1 to 3 are actions 0 to 2, and the last one cannot be read."""

    def solve(self, question: Task, history: Sequence[Exchange]) -> Any:
        return (SOLVER, question.prompt)

    def criticise(self, question: Task, history: Sequence[Exchange], solution: Any) -> Any:
        return (CRITIC, question.prompt, solution)

    def score(self, question: Task, solution: Any, critique: Any) -> Any:
        return (SCORER, question.prompt, solution, critique)

    def grade(self, output: Any) -> int | None:
        return output + 1 if output < 3 else None


def start(questions: int, q: float, noise: bool, seed: int) -> tuple[Table, list[int]]:
    """An agent that cannot answer but score, and the right answers."""
    draw = random.Random(f"comas {seed}")
    right = [draw.randrange(ANSWERS) for _ in range(questions)]
    rows: dict[Any, list[float]] = {(SOLVER, question): [0.0] * ANSWERS for question in range(questions)}
    rows |= {(CRITIC, question, a): [0.0] * ARGUMENTS for question in range(questions) for a in range(ANSWERS)}
    for question, answer, argument in product(range(questions), range(ANSWERS), (None, *range(ARGUMENTS))):
        correct = answer == right[question]
        believes = correct == (draw.random() < q)
        share = GRADES["believed"] + GRADES["contrary"]
        good = GRADES["believed"] if believes else GRADES["contrary"]
        if noise:
            good = share * (q if correct else 1 - q)
        grades = np.log([share - good, GRADES["minor"], good, GRADES["unreadable"]])
        rows[SCORER, question, answer, argument] = grades.clip(min=NONE).tolist()
    return Table(rows), right


def run(arm: str, seed: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """One run of the loop; its curves and what it ends with."""
    how = {"q": 0.8, "noise": False, "critics": 1, "scorer": True} | ARMS[arm]
    first, right = start(settings["questions"], how["q"], how["noise"], seed)
    agents = {f"agent{number}": first.trainable(f"agent{number}") for number in range(settings["agents"])}
    rounds = 2 * settings["agents"]
    game = Discussion(agents, TableRoles(), rounds=rounds, critics=how["critics"], scorer=how["scorer"])
    reference = first.fork("start")
    steps = Optimisation(settings["lr"], epochs=settings["epochs"], seed=seed)
    learners = {
        name: PolicyLearner(
            agent,
            PPOClip(aggregate="decision"),
            steps,
            advantage=ReinforcePlusPlus(),
            shape=[PerTokenKL(settings["beta"], "start")],
            references={"start": reference},
            players=(name,),
        )
        for name, agent in agents.items()
    }
    tasks = [Task(f"question-{number}", number, category="question") for number in range(len(right))]
    curriculum = Uniform({"question": tasks}, seed=seed)
    stage = Stage(settings["steps"], game, curriculum, Interaction(), learners, len(tasks), 1)
    experiment = Experiment([stage], lambda actor: {}, seed=seed, save_every=settings["steps"])
    before, started = {"accuracy": accuracy(game, right), "verdict": verdict(game, right)}, time.process_time()
    with tempfile.TemporaryDirectory() as place, contextlib.redirect_stdout(io.StringIO()):
        folder = RunFolder.create(Path(place) / "run", recipe="benchmarks/comas", config={}, command=COMMAND)
        train(experiment, folder)
        metrics = folder.metrics()
    curves = {role: _curve(metrics, role) for role in (SOLVER, CRITIC, SCORER)}
    last = max(1, settings["steps"] // 5)
    after = {"accuracy": accuracy(game, right), "verdict": verdict(game, right)}
    row: dict[str, Any] = {"cpu": time.process_time() - started}
    for name, value in before.items():
        row |= {f"{name} before": value, f"{name} after": after[name], f"{name} gain": after[name] - value}
    for role, curve in curves.items():
        if curve:
            row |= {f"{role} first": curve[0], f"{role} last": float(np.mean(curve[-last:]))}
    row["curves"] = {role: [round(v, 3) for v in curve[:: max(1, last // 2)]] for role, curve in curves.items()}
    return row


def accuracy(game: Discussion, right: Sequence[int]) -> float:
    """The probability of the right answer, mean over questions and agents."""
    asked = [(SOLVER, question) for question in range(len(right))]
    return _mean(agent.probabilities(*asked)[range(len(right)), right] for agent in _tables(game))


def verdict(game: Discussion, right: Sequence[int]) -> float:
    """The probability of 3 for a right answer and of 1 for a wrong one, among these two, whatever is argued."""
    arguments = (None,) if not game.critics or not game.scorer else tuple(range(ARGUMENTS))
    cells = list(product(range(len(right)), range(ANSWERS), arguments))
    good = torch.tensor([answer == right[question] for question, answer, _ in cells])
    shares = [agent.probabilities(*((SCORER, *cell) for cell in cells)) for agent in _tables(game)]
    return _mean(torch.where(good, share[:, 2], share[:, 0]) / (share[:, 0] + share[:, 2]) for share in shares)


def _tables(game: Discussion) -> list[Table]:
    return [agent for agent in game.agents.values() if isinstance(agent, Table)]


def _mean(values: Iterable[Tensor]) -> float:
    return float(torch.stack(list(values)).mean())


def _curve(metrics: Sequence[Mapping[str, float]], role: str) -> list[float]:
    """A role's mean reward, by iteration, mean over agents."""
    rows = [[v for name, v in m.items() if name.startswith("category/") and name.endswith(f"/{role}")] for m in metrics]
    return [float(np.mean(values)) for values in rows if values]


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean over seeds and its 95 % interval, of every number."""
    table: dict[str, Any] = {}
    for name in rows[0]:
        if name != "curves":
            values = [row[name] for row in rows]
            table[name] = {"mean": round(float(np.mean(values)), 4), "seeds": [round(v, 4) for v in values]}
            table[name]["interval"] = [round(v, 4) for v in mean_interval(values)] if len(rows) > 1 else None
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few steps of two seeds, seconds: does it run?")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help=f"one of {', '.join(SETTINGS)}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = SETTINGS | (QUICK if options.quick else {})
    for pair in options.set:
        name, _, value = pair.partition("=")
        if name not in settings:
            parser.error(f"--set: there is no {name}")
        settings[name] = type(settings[name])(value)
    seeds = [0, 1] if options.quick else options.seeds
    result: dict[str, Any] = {"command": COMMAND, "seeds": seeds, "settings": settings, "grades": GRADES}
    result |= {"machine": platform.machine(), "threads": 1, "versions": versions(), "arms": {}}
    for arm in options.arms:
        rows = [run(arm, seed, settings) for seed in seeds]
        result["arms"][arm] = {"mean": summary(rows), "curves": [row["curves"] for row in rows]}
        cells = [f"{name} {cell['mean']:.2f} {cell['interval']}" for name, cell in summary(rows).items()]
        print(arm, " | ".join(cells), flush=True)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
