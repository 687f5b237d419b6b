"""The verifier's role: scores and confidences of an answer's steps, requests for repair, and verdicts in words."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..envs import scenes
from ..envs.scenes import Question
from ..errors import UsageError
from ..rewards.answers import vote_of
from ..types import Rollout, Score, Task
from .conversation import Reply, Transcript, Turn
from .glimpse import IDS
from .glimpse_backbone import GlimpseSpeech
from .policy import TokenPolicy
from .rereading import OwnEyes, RereadingConsensus, or_zeros, standing
from .wrapped import Wrapped


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
    """g = outcome * r_out + mean_t gamma^(t-1) (score_t sure_t - gate_t cost): after Agent0-VL, eq. 2-5 (not checked).

    A step is a cell that the answer points at, or the answer itself; gate_t = sigmoid(kappa (tau - stands_t)). The
    answer's own look is as sure as the least of those before. What cannot be parsed is one step of score -1, sure 1.
    The mean replaces the paper's sum, which pays for pointing at more cells than were asked for. Every further turn of
    a conversation costs ``cost`` too.
    """

    eyes: OwnEyes
    consensus: RereadingConsensus
    outcome: float = 1.0
    gamma: float = 0.99
    tau: float = 0.7
    kappa: float = 10.0
    cost: float = 0.05

    group_aware = True

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


class Standing(Wrapped):
    """An actor whose answers are what stands of n attempts after a second look, to be imitated: one per question.

    Of counts it is every cell that any attempt pointed at and that shows what is counted, a repair that no single
    attempt may have made; else the most frequent answer all of whose claims hold. Questions of which nothing stands
    give no rollout. ``info["agreed"]`` is the share of attempts with the same last word.
    """

    def __init__(self, policy: TokenPolicy, eyes: OwnEyes) -> None:
        self.policy, self.eyes = policy, eyes

    def act(self, tasks: Sequence[Task], n: int, *, key: tuple[int, ...] = (0,), **sampling: Any) -> list[Rollout]:
        attempts: list[Rollout] = self.policy.act(tasks, n, key=key, **sampling)
        if sampling.get("greedy"):  # a gate or an evaluation asks the policy itself
            return attempts
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


def agreed(rollouts: Sequence[Rollout], **columns: Any) -> list[float]:
    """How far a question's attempts agreed with what stands of them."""
    return [float(rollout.info["agreed"]) for rollout in rollouts]


@dataclass(frozen=True)
class AskingConsensus:
    """The answer that gets most votes, each weighted by the model's own P(yes) to it; 1 for who gave it, else 0.

    A learned verdict: the frozen start is asked "QUESTION check ANSWER".
    """

    judge: TokenPolicy

    group_aware = True

    def __post_init__(self) -> None:
        _knows_check(self.judge)

    def __call__(
        self, tasks: Sequence[Task], completions: Sequence[Any], groups: Sequence[str], **columns: Any
    ) -> list[float]:
        weights = p_yes(self.judge, tasks, completions)
        votes = [vote_of(str(said)) for said in completions]
        sums: dict[str, dict[str | None, float]] = defaultdict(lambda: defaultdict(float))
        for group, vote, weight in zip(groups, votes, weights, strict=True):
            sums[group][vote] += weight if vote is not None else 0.0
        best = {group: max(row, key=lambda vote: row[vote]) for group, row in sums.items()}
        return [float(vote is not None and vote == best[group]) for group, vote in zip(groups, votes, strict=True)]


def _knows_check(judge: TokenPolicy) -> None:
    if not isinstance(judge.speech, GlimpseSpeech):
        raise UsageError('only the default model was taught to be asked "QUESTION check ANSWER"')


def p_yes(judge: TokenPolicy, tasks: Sequence[Task], completions: Sequence[Any]) -> list[float]:
    """P(yes) / (P(yes) + P(no)) of "QUESTION check ANSWER", asked of a small model."""
    from dataclasses import replace

    asked = [
        replace(task, id=f"{task.id}/check/{i}", prompt=f"{task.prompt} check {' '.join(str(said).split()[:16])}")
        for i, (task, said) in enumerate(zip(tasks, completions, strict=True))
    ]
    found: list[float] = []
    for first in range(0, len(asked), judge.at_once):
        prompts = [judge.speech.prompt(task) for task in asked[first : first + judge.at_once]]
        words = torch.tensor([[IDS["="], IDS["yes"]]], device=judge.device).expand(len(prompts), -1)
        with torch.no_grad():
            hidden = judge.backbone.read_whole(prompts, words, torch.ones_like(words, dtype=torch.bool))
            logits = judge.logits(hidden[:, 1])
        found += (logits[:, IDS["yes"]] - logits[:, IDS["no"]]).sigmoid().tolist()
    return found


@dataclass(frozen=True)
class Asking:
    """The model's own P(yes) to an answer, asked "QUESTION check ANSWER"."""

    judge: TokenPolicy

    def __post_init__(self) -> None:
        _knows_check(self.judge)

    def __call__(self, tasks: Sequence[Task], completions: Sequence[Any], **columns: Any) -> list[float]:
        return p_yes(self.judge, tasks, completions)
