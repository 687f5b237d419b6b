"""Discussions: agents solve questions, criticise solutions and score both, and a score is the others' reward.

The game of CoMAS (arXiv 2510.08529). One discussion of a question is ``rounds`` times: an agent drawn uniformly solves
it, having heard the last ``history`` rounds; ``critics`` agents, drawn as well, look for flaws; and of every pair of a
solution and a critique one more agent says how well the solution stands, from 1 to 3, which nobody hears.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch

from ..errors import UsageError
from ..rewards.models.exhibits import text_of
from ..trainers.actors import Game
from ..trainers.randomness import generator
from ..types import Key, Policy, Rollout, Score, Task

SOLVER, CRITIC, SCORER = "solver", "critic", "scorer"
"""The roles; a rollout's is its task's category."""
GRADES = (1, 2, 3)


@dataclass(frozen=True)
class Exchange:
    """One round as later rounds hear it: a solution and what its critics said."""

    solution: Any
    critiques: tuple[Any, ...]


class Roles(ABC):
    """How agents are asked to play each role, and how a scorer is understood."""

    @abstractmethod
    def solve(self, question: Task, history: Sequence[Exchange]) -> Any:
        """The prompt of who solves."""

    @abstractmethod
    def criticise(self, question: Task, history: Sequence[Exchange], solution: Any) -> Any:
        """The prompt of who looks for flaws in a solution."""

    @abstractmethod
    def score(self, question: Task, solution: Any, critique: Any) -> Any:
        """The prompt of who scores a solution, with its critique, or None where there was none."""

    @abstractmethod
    def grade(self, output: Any) -> int | None:
        """What a scorer said: 3 the solution stands, 2 it has minor flaws, 1 it has a fatal one; None is unreadable."""


@dataclass
class Talk:
    """One discussion of a question."""

    question: Task
    name: str
    history: list[Exchange] = field(default_factory=list)


class Discussion(Game):
    """Agents discuss every question n times. Evaluation judges the first agent, who then answers alone.

    A rollout's ``info["grades"]`` are the grades of what was said: of a solution one per critique, else one.
    ``info["grader"]`` marks who had to give one.

    Args:
        agents: the players by name.
        rounds: solutions per discussion.
        critics: critiques per solution; without any a scorer sees the solution alone (an ablation).
        history: rounds that solvers and critics hear of, the last ones.
        scorer: another agent grades; else each critic grades what it criticises, and nobody weighs the critique (an
            ablation).

    Raises:
        UsageError: nobody would solve, hear or grade.
    """

    def __init__(
        self,
        agents: Mapping[str, Policy],
        roles: Roles,
        *,
        rounds: int,
        critics: int = 1,
        history: int = 2,
        scorer: bool = True,
    ) -> None:
        if rounds < 1 or history < 0 or critics < 0 or not agents:
            raise UsageError(
                f"a discussion has 1 or more agents and rounds and hears of 0 or more: not {len(agents)} agents, "
                f"rounds {rounds}, critics {critics}, history {history}"
            )
        if not critics and not scorer:
            raise UsageError("nobody grades: a discussion without a scorer needs --critics of 1 or more")
        self.agents, self.roles = dict(agents), roles
        self.rounds, self.critics, self.history, self.scorer = rounds, critics, history, scorer
        self.players = tuple(self.agents)
        self.judged = self.players[0]
        self.policy = self.agents[self.judged]

    def _parts(self) -> dict[str, Any]:
        return dict(self.agents)

    def fork(self, name: str) -> Self:
        agents = {player: agent.fork(name) for player, agent in self.agents.items()}
        how = {"rounds": self.rounds, "critics": self.critics, "history": self.history, "scorer": self.scorer}
        return type(self)(agents, self.roles, **how)  # type: ignore[arg-type]

    def play(self, tasks: Sequence[Task], n: int, *, key: Key, **sampling: Any) -> list[Rollout]:
        talks = [Talk(task, f"{task.id}/{sample}") for task in tasks for sample in range(n)]
        rounds = [_Round(self, number, key, sampling).hold(talks) for number in range(self.rounds)]
        return [rollout for rollouts in rounds for rollout in rollouts]


@dataclass(frozen=True)
class _Round:
    """One round of every discussion at a time, so that each agent is asked once per role."""

    game: Discussion
    number: int
    key: Key
    sampling: Mapping[str, Any]

    def hold(self, talks: Sequence[Talk]) -> list[Rollout]:
        roles, last, several = self.game.roles, self.game.history, range(self.game.critics)
        heard = [talk.history[-last:] if last else [] for talk in talks]
        solutions = self.ask(SOLVER, talks, [roles.solve(t.question, h) for t, h in zip(talks, heard, strict=True)])
        rows = [row for row in range(len(talks)) for _ in several]
        asked, solved = [talks[row] for row in rows], [solutions[row].output for row in rows]
        if self.game.scorer:
            prompts = [roles.criticise(talks[r].question, heard[r], solutions[r].output) for r in rows]
        else:
            prompts = [roles.score(talk.question, said, None) for talk, said in zip(asked, solved, strict=True)]
        critiques = self.ask(CRITIC, asked, prompts)
        graders = critiques
        if self.game.scorer:
            said = [rollout.output for rollout in critiques]
            if not several:
                rows, asked = list(range(len(talks))), list(talks)
                solved, said = [rollout.output for rollout in solutions], [None] * len(talks)
            triples = zip(asked, solved, said, strict=True)
            graders = self.ask(SCORER, asked, [roles.score(t.question, s, critique) for t, s, critique in triples])
        self._grade(rows, solutions, critiques, graders)
        for row, talk in enumerate(talks):
            its = tuple(critiques[i].output for i, other in enumerate(rows) if several and other == row)
            talk.history.append(Exchange(solutions[row].output, its))
        return [*solutions, *critiques, *(graders if self.game.scorer else [])]

    def _grade(
        self, rows: Sequence[int], solutions: Sequence[Rollout], critiques: Sequence[Rollout], graders: list[Rollout]
    ) -> None:
        """Leave every grade with the solution (its row), the critique and the grader that it is of."""
        grades = [self.game.roles.grade(grader.output) for grader in graders]
        for row, solution in enumerate(solutions):
            of_it = tuple(grade for grade, other in zip(grades, rows, strict=True) if other == row)
            solution.info |= {"grades": of_it, "grader": False}
        for critique, grade in zip(critiques, grades, strict=bool(critiques)):
            critique.info |= {"grades": (grade,), "grader": False}
        for grader, grade in zip(graders, grades, strict=True):
            grader.info |= {"grades": (grade,), "grader": True}

    def ask(self, role: str, talks: Sequence[Talk], prompts: Sequence[Any]) -> list[Rollout]:
        """One rollout per prompt, each by an agent that is drawn uniformly."""
        agents, times = self.game.agents, dict[str, int]()
        batches: dict[str, list[tuple[int, Task]]] = {player: [] for player in agents}
        for row, (talk, prompt) in enumerate(zip(talks, prompts, strict=True)):
            nth = times[talk.name] = times.get(talk.name, -1) + 1
            name = f"{talk.name}/{self.number}/{role}/{nth}"
            draw = torch.randint(len(agents), (1,), generator=generator("speaker", *self.key, name))
            origin = talk.question
            task = replace(origin, id=name, prompt=prompt, reference=None, category=role, parent=origin.id, extra={})
            batches[self.game.players[int(draw)]].append((row, task))
        answers: dict[int, Rollout] = {}
        for player, batch in batches.items():
            if batch:
                rollouts = agents[player].act([task for _, task in batch], 1, key=self.key, **self.sampling)
                for (row, _), rollout in zip(batch, rollouts, strict=True):
                    rollout.player = player
                    answers[row] = rollout
        return [answers[row] for row in range(len(prompts))]


class Interaction:
    """What a discussion pays: r = (grade - 1) / 2 for a solution, 1 - r for a critique, 0 for who grades.

    A solution with several critiques gets the mean. Who had to grade and cannot be read gets -1, and what it should
    have graded nothing (None). A critic that had to grade what it criticises gets 1 - r of its own grade.
    """

    families = frozenset({"policy:scorer"})

    def __call__(self, rollouts: Sequence[Rollout], **columns: Any) -> list[Score]:
        return [interaction(rollout) for rollout in rollouts]


def interaction(rollout: Rollout) -> float | None:
    """One rollout's reward."""
    grades: list[int] = [grade for grade in rollout.info["grades"] if grade is not None]
    if not grades:
        return -1.0 if rollout.info["grader"] else None
    value = sum((grade - 1) / 2 for grade in grades) / len(grades)
    return {SOLVER: value, CRITIC: 1.0 - value, SCORER: 0.0}[rollout.task.category]


class SmallRoles(Roles):
    """The roles in the words of the small default model, which was taught to answer, and to check an answer.

    ==========  ==================================================
    solver      QUESTION, or QUESTION blue_plus no again
    critic      QUESTION check p5 p6 = blue_plus, or QUESTION red_disc no again check p5 p6 = blue_plus
    scorer      QUESTION no again check p5 p6 = blue_plus
    ==========  ==================================================

    Of what was said before, last words are heard. A critic says "= no" or "= yes", as it was taught; so does a scorer,
    for the grades 1 and 3. On 2, or a grade as a number, it may come by itself.
    """

    words: ClassVar[Mapping[str, int]] = {"no": 1, "yes": 3, "1": 1, "2": 2, "3": 3}
    longest: ClassVar[int] = 40  # words that the model reads

    def solve(self, question: Task, history: Sequence[Exchange]) -> str:
        return self._after(question, history, "")

    def criticise(self, question: Task, history: Sequence[Exchange], solution: Any) -> str:
        return self._after(question, history, f" check {solution}".rstrip())

    def score(self, question: Task, solution: Any, critique: Any) -> str:
        heard = [] if critique is None else [Exchange("", (critique,))]
        return self._after(question, heard, f" check {solution}".rstrip())

    def grade(self, output: Any) -> int | None:
        return self.words.get(_last_word(output))

    def _after(self, question: Task, history: Sequence[Exchange], end: str) -> str:
        """The question, what was heard as far as it fits, and what is asked of it."""
        heard = [_last_word(said) for exchange in history for said in (exchange.solution, *exchange.critiques)]
        room = self.longest - 1 - len(f"{question.prompt}{end}".split())
        heard = [word for word in heard if word][-room:]
        return " ".join([str(question.prompt), *heard, *(["again"] if heard else [])]) + end


def _last_word(said: Any) -> str:
    return (str(said).split() or [""])[-1]


class ChatRoles(Roles):
    """The roles in words, for models that follow instructions; a scorer ends with <score>1</score>, 2 or 3.

    What is asked is the paper's, in other words than its prompts.
    """

    def solve(self, question: Task, history: Sequence[Exchange]) -> str:
        return self._talk(question, history) + "Solve the problem step by step, and end with the answer."

    def criticise(self, question: Task, history: Sequence[Exchange], solution: Any) -> str:
        return (
            f"{self._talk(question, history)}A new solution:\n{solution}\n\nFind its errors: say what is wrong, and "
            "why. Do not tell the solution again, and do not agree out of politeness. Be brief."
        )

    def score(self, question: Task, solution: Any, critique: Any) -> str:
        said = "" if critique is None else f"What a critic says of it:\n{critique}\n\nWeigh what the critic says. "
        return (
            f"{self._talk(question, ())}A solution:\n{solution}\n\n{said}Give the solution a score: 3 if it is right "
            "and no objection holds, 2 if it has minor flaws that do not change the answer, 1 if a flaw is fatal. "
            "Give the reason in one sentence, then the score: <score>1</score>, <score>2</score> or <score>3</score>."
        )

    def grade(self, output: Any) -> int | None:
        grades = re.findall(r"<score>\s*([1-3])\s*</score>", str(output))
        return int(grades[-1]) if grades else None

    def _talk(self, question: Task, history: Sequence[Exchange]) -> str:
        lines = [f"Problem:\n{text_of(question.prompt)}\n"]
        for number, exchange in enumerate(history, 1):
            lines.append(f"Solution {number} so far:\n{exchange.solution}\n")
            lines += [f"Criticism of solution {number}:\n{critique}\n" for critique in exchange.critiques]
        return "\n".join(lines) + "\n"
