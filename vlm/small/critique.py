"""The verifier's role: scores and confidences of an answer's steps, requests for repair, and verdicts in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...envs.toys import scenes
from ...envs.toys.scenes import Question
from ...families import of_family
from ...trainers.actors import TrainingWrapper
from ...types import Key, Rollout, Score, Task
from ..conversation import Reply, Transcript, Turn
from ..policy import TokenPolicy
from .rereading import SECOND_LOOK, OwnEyes, RereadingConsensus, or_zeros, standing


@dataclass(frozen=True)
class Verdict:
    """Of one step of an answer.

    Attributes:
        score: 1 where the second look agrees with the step, -1 where it does not.
        sure: probability that the look gives to what it reads.
    """

    score: float
    sure: float

    @property
    def stands(self) -> float:
        """Confidence that the step may stand."""
        return self.sure if self.score > 0 else 1.0 - self.sure


@dataclass(frozen=True)
class StepCritique:
    """g = outcome * r_out + mean_t gamma^(t-1) (score_t sure_t - gate_t cost).

    A step is a cell that the answer points at, or the answer itself; gate_t = sigmoid(kappa (tau - stands_t)). The
    answer's own look is as sure as the least of those before. What cannot be parsed is one step of score -1, sure 1.
    It is a mean, as a sum pays for pointing at more cells than were asked for. Every further turn of a conversation
    costs ``cost`` too.
    """

    eyes: OwnEyes
    consensus: RereadingConsensus
    outcome: float = 1.0
    gamma: float = 0.99
    tau: float = 0.7
    kappa: float = 10.0
    cost: float = 0.05

    group_aware = True
    families = SECOND_LOOK

    def verdicts(self, prompt: str, said: str, picture: Any) -> list[Verdict]:
        """One per step."""
        answer = scenes.parse_answer(said)
        if answer is None:
            return [Verdict(-1.0, 1.0)]
        held = scenes.claims(Question.parse(prompt), answer, self.eyes([picture])[0])
        sure = [self.eyes.sure(picture)[cell] for cell in answer.cells]
        sure.append(min(sure, default=1.0))
        return [Verdict(1.0 if ok else -1.0, conf) for ok, conf in zip(held, sure, strict=True)]

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], images: Any, groups: Sequence[str], **columns: Any
    ) -> Mapping[str, Sequence[Score]]:
        agreed = self.consensus.agreement(prompts, completions, images, groups)
        steps, totals = list[Score](), list[Score]()
        for prompt, said, shown, right in zip(prompts, completions, images, agreed, strict=True):
            verdicts = self.verdicts(str(prompt), str(said), shown[0])
            value = 0.0
            for t, verdict in enumerate(verdicts):
                gate = 1.0 / (1.0 + math.exp(-self.kappa * (self.tau - verdict.stands)))
                value += self.gamma**t * (verdict.score * verdict.sure - gate * self.cost)
            repairs = len(said.turns) - 1 if isinstance(said, Transcript) else 0
            process = value / len(verdicts) - repairs * self.cost
            steps.append(process)
            totals.append(None if right is None else self.outcome * float(right) + process)  # type: ignore[arg-type]
        return {"steps": steps, "consensus": or_zeros(agreed), "total": or_zeros(totals)}


@dataclass(frozen=True)
class Verifier:
    """The environment of a conversation with oneself: who said something that does not stand is asked again."""

    critique: StepCritique

    def __call__(self, task: Task, turns: Sequence[Turn]) -> Reply:
        verdicts = self.critique.verdicts(str(task.prompt), turns[-1].text, task.images[0])
        if all(verdict.stands >= self.critique.tau for verdict in verdicts):
            return Reply(done=True)
        return Reply("again")


class Standing(TrainingWrapper):
    """An actor whose answers are what stands of n attempts after a second look, to be imitated: one per question.

    Of counts it is every cell that any attempt pointed at and that shows what is counted, a repair that no single
    attempt may have made; else the most frequent answer all of whose claims hold. Questions of which nothing stands
    give no rollout. ``info["agreed"]`` is the share of attempts with the same last word.
    """

    def __init__(self, policy: TokenPolicy, eyes: OwnEyes) -> None:
        super().__init__(policy)
        self.eyes = eyes

    def attempt(self, tasks: Sequence[Task], n: int, *, key: Key, **sampling: Any) -> list[Rollout]:
        attempts: list[Rollout] = self.policy.act(tasks, n, key=key, **sampling)
        kept, said, shares = [], [], []
        for place, (task, seen) in enumerate(zip(tasks, self.eyes([task.images[0] for task in tasks]), strict=True)):
            texts = [str(rollout.output) for rollout in attempts[place * n : (place + 1) * n]]
            answers = [answer for text in texts if (answer := scenes.parse_answer(text)) is not None]
            found = standing(Question.parse(str(task.prompt)), answers, seen)
            if found is not None:
                kept.append(task)
                said.append(str(found))
                shares.append(sum(answer.word == found.word for answer in answers) / n)
        rollouts: list[Rollout] = self.policy.encode(kept, said)
        for rollout, share in zip(rollouts, shares, strict=True):
            rollout.info["agreed"] = share
        return rollouts


class Solved(TrainingWrapper):
    """An actor that answers by the world's own solver on what the eyes read, whatever the policy says: one per question
    that the reading settles. No signal of a second look can be better than it."""

    def __init__(self, policy: TokenPolicy, eyes: OwnEyes) -> None:
        super().__init__(policy)
        self.eyes = eyes

    def attempt(self, tasks: Sequence[Task], n: int, *, key: Key, **sampling: Any) -> list[Rollout]:
        seen = self.eyes([task.images[0] for task in tasks])
        found = [scenes.answer(Question.parse(str(t.prompt)), read) for t, read in zip(tasks, seen, strict=True)]
        solved = [(task, str(answer)) for task, answer in zip(tasks, found, strict=True) if answer is not None]
        rollouts: list[Rollout] = self.policy.encode([task for task, _ in solved], [said for _, said in solved])
        for rollout in rollouts:
            rollout.info["agreed"] = 1.0
        return rollouts


@of_family(*SECOND_LOOK)
def agreed(rollouts: Sequence[Rollout], **columns: Any) -> list[float]:
    """How far a question's attempts agreed with what stands of them."""
    return [float(rollout.info["agreed"]) for rollout in rollouts]
