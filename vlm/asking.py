"""Self-judges: a token policy is asked yes or no, whether an answer is right, and its P(yes) counts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from ..rewards.log_ratio import LogRatio, scorer
from ..rewards.models.exhibits import Prompt, text_of, texts_of
from ..rewards.models.judge import RIGHT
from ..rewards.models.vlm import share_of_yes, tokens_of
from ..rewards.text.answers import vote_of
from ..rewards.text.steps import MonteCarlo, WeakestStep
from ..rewards.text.verifiers import Exact
from ..trainers.policy import Cost, cut
from ..types import Task
from .backbone import Prompt as Question
from .continuation import Continuation, judging
from .policy import TokenPolicy
from .processing import ProcessorRenderer
from .small.glimpse import IDS
from .small.glimpse_backbone import GlimpseRenderer


class PolicyAsker:
    """Asker of judges (``rewards.models.judge``) that is a token policy: ``YesNoJudge(asker=PolicyAsker(policy))``.

    "yes" and "no" count in every spelling that is one token. The policy is in eval mode for the time of asking only.

    Args:
        policy: who is asked.
        live: ask the policy itself, at the weights that it has then: while rewards are computed, those of the round's
            beginning. Otherwise a copy, frozen as it is now (a policy with nothing to train is one already).
        name: of the policy in ``families``, "policy:NAME".
    """

    def __init__(self, policy: TokenPolicy, *, live: bool = False, name: str = "self") -> None:
        self.policy = judging(policy, live, name)
        self.families = frozenset({f"policy:{name}"})

    def __call__(self, prompts: Sequence[Prompt]) -> list[float]:
        """P(yes) / (P(yes) + P(no)) of the next token after each prompt.

        Raises:
            UsageError: a picture stands after words; policies see pictures first.
        """
        return self.p_yes([_task(row, prompt) for row, prompt in enumerate(prompts)])

    def p_yes(self, tasks: Sequence[Task]) -> list[float]:
        """The same of tasks, whose prompts are the questions; 0 of one that is longer than the model can read."""
        (yes, no), answers = self._words(), []
        with self.policy.inference():
            made = (self.policy.renderer.prompt(task) for task in tasks)
            costs = ((prompt, Cost(len(prompt.ids))) for prompt in made)
            for prompts in cut(costs, self.policy.sample_tokens, padded=True):
                fit = [self.policy.renderer.fits(prompt, 1) for prompt in prompts]
                read = [prompt for prompt, fits in zip(prompts, fit, strict=True) if fits]
                shares = iter(share_of_yes(self._next(read), yes, no).tolist() if read else [])
                answers += [next(shares) if fits else 0.0 for fits in fit]
        return answers

    def rightness(self, tasks: Sequence[Task], completions: Sequence[Any]) -> list[float]:
        """P(yes) when asked whether each completion is the right answer to its task.

        The small default is asked "QUESTION check ANSWER", as it was taught; others in words, with the task's images.
        """
        small = isinstance(self.policy.renderer, GlimpseRenderer)
        questions = []
        for row, (task, text) in enumerate(zip(tasks, texts_of([t.prompt for t in tasks], len(tasks)), strict=True)):
            said = self.policy.renderer.plain(text_of(completions[row]))
            check = f"{text} check {' '.join(said.split()[:16])}"
            prompt = check if small else RIGHT.format(prompt=text, completion=said)
            questions.append(replace(task, id=f"{task.id}/check/{row}", prompt=prompt))
        return self.p_yes(questions)

    def _words(self) -> tuple[Tensor, Tensor]:
        renderer, device = self.policy.renderer, self.policy.device
        if isinstance(renderer, ProcessorRenderer):
            return tokens_of(renderer.tokenizer, "yes").to(device), tokens_of(renderer.tokenizer, "no").to(device)
        return torch.tensor([IDS["yes"]], device=device), torch.tensor([IDS["no"]], device=device)

    def _next(self, prompts: Sequence[Question]) -> Tensor:
        """[N, V] logits of the token after each question."""
        policy = self.policy
        if isinstance(policy.renderer, GlimpseRenderer):  # its answers begin with "="
            words = torch.tensor([[IDS["="], IDS["yes"]]], device=policy.device).expand(len(prompts), -1)
            mask = torch.ones_like(words, dtype=torch.bool)
            return policy.logits(policy.backbone.read_whole(prompts, words, mask)[:, 1])
        hidden, _ = policy.backbone.read(prompts)
        return policy.logits(hidden)


def _task(row: int, prompt: Prompt) -> Task:
    pictures = [part for part in prompt if not isinstance(part, str)]
    words = [part for part in prompt[len(pictures) :] if isinstance(part, str)]
    if len(pictures) + len(words) < len(prompt):
        raise UsageError("a policy that is asked sees pictures before words: put the words of the question last")
    return Task(f"asked/{row}", "\n".join(words), tuple(pictures))


class Asking:
    """Reward: the policy's P(yes) that an answer is right.

    Args:
        policy, live, name: as of ``PolicyAsker``.
    """

    def __init__(self, policy: TokenPolicy, *, live: bool = False, name: str = "self") -> None:
        self.asker = PolicyAsker(policy, live=live, name=name)
        self.families = self.asker.families

    def __call__(self, tasks: Sequence[Task], completions: Sequence[Any], **columns: Any) -> list[float]:
        """One score per sample, in 0..1."""
        return self.asker.rightness(tasks, completions)


class AskingConsensus(Asking):
    """Reward: 1 for the answer that gets most votes, each weighted by the policy's P(yes) to it, else 0."""

    group_aware = True

    def __init__(self, policy: TokenPolicy, *, live: bool = False, name: str = "self") -> None:
        super().__init__(policy, live=live, name=name)
        self.families |= {"majority vote"}

    def __call__(
        self, tasks: Sequence[Task], completions: Sequence[Any], groups: Sequence[str] = (), **columns: Any
    ) -> list[float]:
        """One score per sample; the samples of a question have one group."""
        weights = self.asker.rightness(tasks, completions)
        votes = [vote_of(text_of(said)) for said in completions]
        sums: dict[str, dict[str | None, float]] = defaultdict(lambda: defaultdict(float))
        for group, vote, weight in zip(groups, votes, weights, strict=True):
            sums[group][vote] += weight if vote is not None else 0.0
        best = {group: max(row, key=lambda vote: row[vote]) for group, row in sums.items()}
        return [float(vote is not None and vote == best[group]) for group, vote in zip(groups, votes, strict=True)]


OWN = ("self_yes_no", "self_vote", "log_ratio", "weakest_step")
"""Names of rewards that need the policy."""


def own_rewards(policy: TokenPolicy, start: TokenPolicy, *, live: bool = False) -> dict[str, Callable[[], Any]]:
    """Rewards that need the policy, by the names of ``--rewards`` and ``--judge``, each made when called.

    * self_yes_no: P(yes) when it is asked whether the answer is right.
    * self_vote: the majority's answer, votes weighted by that.
    * log_ratio: which way the policy moved away from the start; always live (CREAM's and DPO's implicit reward).
    * weakest_step: for right answers the least share of its continuations, over lines, that are right too.

    Args:
        policy: the one that learns.
        start: it before it learned, frozen.
        live: the first two and the last ask the policy at the round's beginning, not the start.
    """

    def weakest_step() -> Any:
        return WeakestStep(MonteCarlo(Continuation(judge, live=live), Exact(), n=4), Exact())

    judge = policy if live else start
    return {
        "self_yes_no": lambda: Asking(judge, live=live),
        "self_vote": lambda: AskingConsensus(judge, live=live),
        "log_ratio": lambda: LogRatio(scorer(policy), scorer(start)),
        "weakest_step": weakest_step,
    }
