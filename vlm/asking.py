"""A learned verdict: the model itself is asked whether an answer is right, and its P(yes) counts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..rewards.answers import vote_of
from ..rewards.exhibits import texts_of
from ..rewards.judge import RIGHT, tokens_of
from ..types import Task
from .glimpse import IDS
from .glimpse_backbone import GlimpseSpeech
from .policy import TokenPolicy
from .processing import ProcessorSpeech


def p_yes(judge: TokenPolicy, tasks: Sequence[Task], completions: Sequence[Any]) -> list[float]:
    """P(yes) / (P(yes) + P(no)) of the next token, when a model is asked whether an answer is right.

    The small default is asked "QUESTION check ANSWER", as it was taught; others in words, with the question's images.
    "yes" and "no" count in every spelling that is one token.
    """
    small = isinstance(judge.speech, GlimpseSpeech)
    texts = texts_of([task.prompt for task in tasks], len(tasks))
    yes, no = _words(judge)
    found: list[float] = []
    for first in range(0, len(tasks), judge.at_once):
        rows = range(first, min(first + judge.at_once, len(tasks)))
        asked = []
        for row in rows:
            said = str(completions[row])
            question = f"{texts[row]} check {' '.join(said.split()[:16])}"
            prompt = question if small else RIGHT.format(prompt=texts[row], completion=said)
            asked.append(replace(tasks[row], id=f"{tasks[row].id}/check/{row}", prompt=prompt))
        with torch.no_grad():
            logits = _next(judge, asked)
        found += (logits[:, yes].logsumexp(-1) - logits[:, no].logsumexp(-1)).sigmoid().tolist()
    return found


def _words(judge: TokenPolicy) -> tuple[Tensor, Tensor]:
    if isinstance(judge.speech, ProcessorSpeech):
        tokenizer = judge.speech.tokenizer
        return tokens_of(tokenizer, "yes").to(judge.device), tokens_of(tokenizer, "no").to(judge.device)
    return torch.tensor([IDS["yes"]], device=judge.device), torch.tensor([IDS["no"]], device=judge.device)


def _next(judge: TokenPolicy, asked: Sequence[Task]) -> Tensor:
    """[N, V] logits of the token after each question."""
    prompts = [judge.speech.prompt(task) for task in asked]
    if isinstance(judge.speech, GlimpseSpeech):  # its answers begin with "="
        words = torch.tensor([[IDS["="], IDS["yes"]]], device=judge.device).expand(len(prompts), -1)
        return judge.logits(judge.backbone.read_whole(prompts, words, torch.ones_like(words, dtype=torch.bool))[:, 1])
    hidden, _ = judge.backbone.read(prompts)
    return judge.logits(hidden)


@dataclass(frozen=True)
class AskingConsensus:
    """The answer that gets most votes, each weighted by the frozen start's P(yes) to it; 1 for who gave it, else 0."""

    judge: TokenPolicy

    group_aware = True

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


@dataclass(frozen=True)
class Asking:
    """The frozen start's P(yes) to an answer."""

    judge: TokenPolicy

    def __call__(self, tasks: Sequence[Task], completions: Sequence[Any], **columns: Any) -> list[float]:
        return p_yes(self.judge, tasks, completions)
