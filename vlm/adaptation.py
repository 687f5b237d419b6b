"""Test-time adaptation: for an input that it is unsure of, a policy learns from examples that it writes, and forgets.

After TT-SI (arXiv 2510.07841, section on uncertainty and self-augmentation as noted; not checked against the paper).
``AdaptAndReset`` knows no modality. What is asked of one is two functions: how sure is a policy of its inputs, and what
does it write that is similar to one of them.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch

from ..envs.toys.scenes import Question, View, in_order, parse_answer
from ..errors import UsageError
from ..rewards.models.exhibits import texts_of
from ..rewards.text.answers import vote_of
from ..trainers.actors import SystemWrapper
from ..trainers.learner import backpropagate
from ..trainers.objectives import WeightedImitation
from ..trainers.randomness import generator
from ..types import Mode, Rollout, Task

Key = tuple[int, ...]
Margin = Callable[[Any, Sequence[Task]], Sequence[float]]
"""A policy and inputs without labels -> u of each, the probability of the best action less that of the second best."""
Similar = Callable[[Any, Task, int, Key], Sequence[Rollout]]
"""A policy, an input without its label, a number and a key -> so many new (input, output) pairs, or fewer. A rollout's
``train_task`` is the new input where the output was sampled in another context, such as a request to write it."""


@dataclass(frozen=True)
class Adaptation:
    """Cross-entropy on the pairs: ``steps`` of AdamW on all of them, with a new optimiser per input."""

    steps: int = 1
    lr: float = 1e-4

    def __call__(self, policy: Any, pairs: Sequence[Rollout]) -> None:
        batch = policy.collate(pairs)
        parameters = list(policy.parameters())
        optimizer = torch.optim.AdamW(parameters, self.lr, weight_decay=0.0)
        for _ in range(self.steps):
            optimizer.zero_grad(set_to_none=True)
            backpropagate(policy, WeightedImitation(), batch)
            if bool(torch.nn.utils.clip_grad_norm_(parameters, torch.inf).isfinite()):
                optimizer.step()


class AdaptAndReset(SystemWrapper):
    """A policy that tunes a copy of itself on examples of its own before it answers what it is unsure of.

    Per input x: u(x) >= threshold is answered by the policy; else a copy of its trained weights (the rest is shared) is
    tuned on pairs similar to x, answers, and starts from the policy's weights again. The policy itself is never
    written to, so that nothing has to be undone, whatever is raised on the way. Margin and examples see inputs without
    labels. Forks adapt as it does.

    Args:
        threshold: tau; 0 answers all inputs directly, above 1 adapts to each.
        examples: pairs per input, K.
        gate_by: "random" is a control at equal budget: as many inputs of a call adapt, whichever they are.

    ``info`` of every rollout: "margin", and whether the copy "adapted" (False where no pair was written).
    """

    parts: ClassVar[tuple[str, ...]] = ("policy",)

    def __init__(
        self,
        policy: Any,
        margin: Margin,
        similar: Similar,
        adaptation: Adaptation,
        *,
        threshold: float = 0.95,
        examples: int = 1,
        gate_by: Literal["margin", "random"] = "margin",
    ) -> None:
        if examples < 1 or adaptation.steps < 1:
            raise UsageError(f"adapting takes 1 example and 1 step or more, not {examples} and {adaptation.steps}")
        self.policy, self.players = policy, policy.players
        self.margin, self.similar, self.adaptation = margin, similar, adaptation
        self.threshold, self.examples, self.gate_by = threshold, examples, gate_by

    def act(
        self,
        tasks: Sequence[Task],
        n: int,
        *,
        key: Key = (0,),
        mode: Mode = "train",
        greedy: bool = False,
        **sampling: Any,
    ) -> list[Rollout]:
        """n attempts per task; further keywords are the policy's."""
        blank = [unlabelled(task) for task in tasks]
        margins = list(self.margin(self.policy, blank))
        chosen = self.unsure(blank, margins, key)
        asked = {"key": key, "mode": mode, "greedy": greedy, **sampling}
        sure = [row for row in range(len(tasks)) if row not in chosen]
        direct = self.policy.act([tasks[row] for row in sure], n, **asked) if sure else []
        answers = {row: direct[place * n : (place + 1) * n] for place, row in enumerate(sure)}
        adapted: Any = self.policy.trainable("adapted") if chosen else None
        for row in sorted(chosen):
            pairs = self.similar(self.policy, blank[row], self.examples, key)
            adapted.copy_from(self.policy)
            if pairs:
                self.adaptation(adapted, pairs)
            answers[row] = adapted.act([tasks[row]], n, **asked)
            for rollout in answers[row]:
                rollout.graph, rollout.version = None, "adapted"  # of weights that are no more
                rollout.info["adapted"] = bool(pairs)
        for row, margin in enumerate(margins):
            for rollout in answers[row]:
                rollout.info = {"adapted": False, **rollout.info, "margin": margin}
        return [rollout for row in range(len(tasks)) for rollout in answers[row]]

    def unsure(self, tasks: Sequence[Task], margins: Sequence[float], key: Key) -> set[int]:
        """The places of the inputs that are adapted to."""
        low = {row for row, margin in enumerate(margins) if margin < self.threshold}
        if self.gate_by == "margin":
            return low
        draws = [torch.rand(1, generator=generator("adapt", *key, task.id)).item() for task in tasks]
        return set(sorted(range(len(tasks)), key=draws.__getitem__)[: len(low)])


def unlabelled(task: Task) -> Task:
    """An input as margin and examples may see it: of what is beside it only its choices, no answer and no trace."""
    extra = {name: value for name, value in task.extra.items() if name == "choices"}
    return replace(task, reference=None, extra=extra)


# how sure a policy is


def margin_of(log_probs: Sequence[float]) -> float:
    """u = p_(1) - p_(2) with p = softmax(l) (RSS); 1 for a single candidate, 0 for none."""
    if not log_probs:
        return 0.0
    shares = torch.tensor(log_probs, dtype=torch.float64).softmax(0).sort(descending=True).values.tolist()
    return float(shares[0] - (shares[1] if len(shares) > 1 else 0.0))


@dataclass(frozen=True)
class AmongCandidates:
    """The margin over candidate actions that are known per input, l = log P(a | x) of each."""

    candidates: Callable[[Task], Sequence[Any]]

    def __call__(self, policy: Any, tasks: Sequence[Task]) -> list[float]:
        several = [list(self.candidates(task)) for task in tasks]
        asked = [task for task, candidates in zip(tasks, several, strict=True) for _ in candidates]
        batch = policy.collate(policy.encode(asked, [candidate for candidates in several for candidate in candidates]))
        with torch.no_grad():
            log_probs = policy.evaluate_actions(batch).log_probs.sum(-1)
        return [margin_of(part.tolist()) for part in log_probs.split([len(candidates) for candidates in several])]


@dataclass(frozen=True)
class AmongAnswers:
    """The margin over the answers that a policy gives when it is asked ``samples`` times.

    For answers that follow from words before them: l = log of the sum of P(text | x) over distinct texts that come to
    the answer. Texts that were cut off count as none.
    """

    samples: int = 8

    def __call__(self, policy: Any, tasks: Sequence[Task]) -> list[float]:
        rollouts = policy.act(tasks, self.samples, mode="evaluate")
        margins = []
        for first in range(0, len(rollouts), self.samples):
            texts: dict[str, dict[str, float]] = defaultdict(dict)
            for rollout in rollouts[first : first + self.samples]:
                said = str(rollout.output)
                if (vote := vote_of(said)) is not None and not rollout.info.get("truncated"):
                    texts[vote][said] = float(rollout.log_probs.sum())
            margins.append(margin_of([float(torch.tensor([*same.values()]).logsumexp(0)) for same in texts.values()]))
        return margins


@dataclass(frozen=True)
class Sureness:
    """The margin over an input's ``extra["choices"]``, or over ``attempts`` answers where it names none."""

    attempts: int = 8

    def __call__(self, policy: Any, tasks: Sequence[Task]) -> list[float]:
        ways: dict[bool, Margin] = {
            True: AmongCandidates(lambda task: list(task.extra["choices"])),
            False: AmongAnswers(self.attempts),
        }
        margins = [0.0] * len(tasks)
        for named, way in ways.items():
            rows = [row for row, task in enumerate(tasks) if bool(task.extra.get("choices")) == named]
            for row, margin in zip(rows, way(policy, [tasks[row] for row in rows]) if rows else (), strict=True):
                margins[row] = margin
        return margins


# what a policy writes


@dataclass(frozen=True)
class Views:
    """A question of the small world in new random views, with what the policy says most often of it in others.

    The small model writes no pictures, so that the new input is made: turned, mirrored, channels permuted. Its answer
    is the policy's own: greedy in ``attempts`` views, the question as it stands first, each answer told as of the
    question, the most frequent last word with its most frequent trace. It is trained in a new view (``train_task``).
    """

    attempts: int = 8

    def __call__(self, policy: Any, task: Task, k: int, key: Key) -> list[Rollout]:
        question, draw = Question.parse(str(task.prompt)), random.Random(f"{key} {task.id}")
        views = [View(), *(View.draw(question, draw) for _ in range(self.attempts - 1))]
        asked = [_in_view(task, view, f"asked/{i}") for i, view in enumerate(views)]
        rollouts = policy.act(asked, 1, key=key, mode="evaluate", greedy=True)
        backs = (view.back(str(rollout.output)) for view, rollout in zip(views, rollouts, strict=True))
        said = [answer for text in backs if (answer := parse_answer(in_order(question, text))) is not None]
        if not said:
            return []
        word = Counter(answer.word for answer in said).most_common(1)[0][0]
        trace = Counter(str(answer) for answer in said if answer.word == word).most_common(1)[0][0]
        new = [View.draw(question, draw) for _ in range(k)]
        pairs = list(policy.encode([task] * k, [in_order(question, view.text(trace)) for view in new]))
        for number, (pair, view) in enumerate(zip(pairs, new, strict=True)):
            pair.train_task = _in_view(task, view, f"similar/{number}")
        return pairs


def _in_view(task: Task, view: View, name: str) -> Task:
    images, prompt = (view.picture(task.images[0]),), view.text(str(task.prompt))
    return replace(task, id=f"{task.id}/{name}", prompt=prompt, images=images, parent=task.id)


REQUEST = (
    "{question}\n\nDo not answer this. Write one new question of the same kind, but about other things, and its right "
    "answer, in two lines:\nQuestion: ...\nAnswer: ..."
)
_QUESTION = re.compile(r"question:", re.IGNORECASE)
_ANSWER = re.compile(r"^[^\S\n]*answer:", re.IGNORECASE | re.MULTILINE)


def written_pair(text: str) -> tuple[str, str] | None:
    """The question and the answer that a text in the form of ``REQUEST`` holds, in time linear in its length."""
    begun = _QUESTION.search(text)
    asked = len(text) if begun is None else begun.end()
    for found in _ANSWER.finditer(text, asked):
        question, answer = text[asked : found.start()].strip(), text[found.end() :].partition("\n")[0].strip()
        if question and answer:
            return question, answer
    return None


@dataclass(frozen=True)
class Written:
    """New questions with their answers, for which a model is asked in words.

    A pair is sampled as an answer to the request, and trained as the answer to the new question alone
    (``train_task``), beside the same images. What is not written in the form that was asked for is left out.
    """

    def __call__(self, policy: Any, task: Task, k: int, key: Key) -> list[Rollout]:
        request = REQUEST.format(question=texts_of([task.prompt], 1)[0])
        asked = replace(task, id=f"{task.id}/similar", prompt=request, horizon=None)
        pairs = []
        for number, attempt in enumerate(policy.act([asked], k, key=key, mode="evaluate")):
            if pair := written_pair(str(attempt.output)):
                question, answer = pair
                new = replace(task, id=f"{task.id}/similar/{number}", prompt=question, parent=task.id)
                (rollout,) = policy.encode([asked], [answer])
                rollout.train_task = new
                pairs.append(rollout)
        return pairs
