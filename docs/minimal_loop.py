"""Self-improvement on one screen: task -> policy -> reward -> GRPO -> gate, with PyTorch alone.

A policy is told a word and is to say it backwards. Nobody shows it how. It tries, a reward scores
each try, and it does more of what scored better than its other tries. Halfway the reward breaks and
pays for the letter "a" instead. The policy follows it, as any learner would; a gate that judges by
other means sees the harm and puts the last good weights back.

    python docs/minimal_loop.py             # the gate holds what was learned
    python docs/minimal_loop.py --no-gate   # the broken reward ruins it

The package has the same parts under the same names, for models and robots of any size: this file is
``autotelic.trainers.loop`` without checkpoints, resuming, several processes and modalities.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass

import torch
from torch import Tensor, nn

ALPHABET = "abcde"
LENGTH = 4


@dataclass(frozen=True)
class Config:
    """Tries per task make a group; a group's members are compared with each other only."""

    iterations: int = 120
    breaks_at: int = 60
    tasks_per_step: int = 16
    group_size: int = 8
    epochs: int = 2
    lr: float = 5e-3
    clip: float = 0.2
    gate: bool = True
    gate_every: int = 5
    margin: float = 0.03
    seed: int = 0


# 1. Tasks. A curriculum could choose them by difficulty; here every word is as likely as any other.


def all_words() -> tuple[Tensor, Tensor]:
    """Training words and held-out probes, as letters [N, LENGTH]; no word is in both."""
    words = torch.cartesian_prod(*[torch.arange(len(ALPHABET))] * LENGTH)
    probe = words.sum(-1) % 5 == 0
    return words[~probe], words[probe]


# 2. Policy. Anything with log-probabilities for its decisions will do: here one letter is one decision.


class Policy(nn.Module):
    """Words [B, LENGTH] -> logits [B, LENGTH, letters] of the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(len(ALPHABET), 8)
        self.body = nn.Sequential(
            nn.Linear(8 * LENGTH, 64), nn.SiLU(), nn.Linear(64, LENGTH * len(ALPHABET)), nn.Unflatten(-1, (LENGTH, -1))
        )

    def forward(self, words: Tensor) -> Tensor:
        logits: Tensor = self.body(self.letters(words).flatten(1))
        return logits

    def log_probs(self, words: Tensor, answers: Tensor) -> Tensor:
        """[B, T]: how likely each letter of the answers is now."""
        return self(words).log_softmax(-1).gather(-1, answers[..., None])[..., 0]

    @torch.no_grad()
    def act(self, words: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sampled answers [B, T] and the log-probabilities [B, T] that they were sampled with.

        These are stored, because the weights will have moved on by the time they are learned from.
        """
        chances = self(words).softmax(-1)
        answers = torch.multinomial(chances.flatten(0, 1), 1, generator=random).view(len(words), LENGTH)
        return answers, self.log_probs(words, answers)


# 3. Reward: one number per try. It may be a verifier as here, a judge, or a learned estimate of progress.


def reward(words: Tensor, answers: Tensor) -> Tensor:
    """[B] share of letters in the right place."""
    return (answers == words.flip(-1)).float().mean(-1)


def broken_reward(words: Tensor, answers: Tensor) -> Tensor:
    """[B] share of letters that are "a". Learned rewards break in less obvious ways, to the same effect."""
    return (answers == 0).float().mean(-1)


# 4. Objective: group-relative advantages and a clipped ratio (GRPO, arXiv 2402.03300).


def advantages(scores: Tensor, group_size: int) -> Tensor:
    """[B, 1] (score - mean) / std within each group of tries at one task.

    The group's mean stands for how hard its task is, so no value network is needed. A group whose
    tries all scored the same has nothing to teach, and gets zeros.
    """
    groups = scores.view(-1, group_size)
    centred = groups - groups.mean(-1, keepdim=True)
    return (centred / (groups.std(-1, keepdim=True) + 1e-6)).view(-1, 1)


def objective(now: Tensor, behaviour: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """Minus the clipped surrogate: what got likelier by more than the clip has no further pull."""
    ratio = (now - behaviour).exp()  # 1 before the first step
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()


# 5. Gate: may what was learned stay? Its judge is not the training reward, or it would break with it.


@torch.no_grad()
def judge(policy: Policy, probes: Tensor) -> float:
    """Mean share of positions of held-out words where the policy's most likely letter is right.

    A real gate rarely knows the answers; it asks a judge of another family than the training reward.
    """
    return float((policy(probes).argmax(-1) == probes.flip(-1)).float().mean())


class Gate:
    """Keeps a candidate unless the judge's score is a margin below its best; else all that learns goes back.

    The best and not the last, so that small falls cannot add up. All that learns includes the optimizer:
    its momentum still points where the harm is. Rolling back alone can only hold what there is; the
    package's gate also repairs, by leaving out what did the harm.
    """

    def __init__(self, policy: Policy, optimizer: torch.optim.Optimizer, probes: Tensor, margin: float) -> None:
        self.learners, self.policy = (policy, optimizer), policy
        self.probes, self.margin = probes, margin
        self.best = 0.0
        self()

    def __call__(self) -> str:
        score = judge(self.policy, self.probes)
        if score >= self.best - self.margin:
            self.best = max(self.best, score)
            self.kept = [copy.deepcopy(learner.state_dict()) for learner in self.learners]
            return "keep"
        for learner, state in zip(self.learners, self.kept, strict=True):
            learner.load_state_dict(copy.deepcopy(state))
        return "rollback"


# The loop. Read it beside the picture in docs/architecture.md.


@dataclass(frozen=True)
class Step:
    iteration: int
    reward: float
    verdict: str
    judged: float
    """The judge's score after the gate."""


def run(config: Config) -> list[Step]:
    """The whole run; the same seed gives the same run."""
    torch.manual_seed(config.seed)
    random = torch.Generator().manual_seed(config.seed)
    training, probes = all_words()
    policy = Policy()
    optimizer = torch.optim.Adam(policy.parameters(), lr=config.lr)
    gate = Gate(policy, optimizer, probes, config.margin)
    history = []
    for iteration in range(1, config.iterations + 1):
        tasks = training[torch.randint(len(training), (config.tasks_per_step,), generator=random)]
        words = tasks.repeat_interleave(config.group_size, 0)
        answers, behaviour = policy.act(words, random)
        scores = (reward if iteration <= config.breaks_at else broken_reward)(words, answers)
        advantage = advantages(scores, config.group_size)
        for _ in range(config.epochs):
            loss = objective(policy.log_probs(words, answers), behaviour, advantage, config.clip)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        due = config.gate and iteration % config.gate_every == 0
        verdict = gate() if due else ""
        history.append(Step(iteration, float(scores.mean()), verdict, judge(policy, probes)))
    return history


if __name__ == "__main__":
    torch.set_num_threads(1)  # so small a model only waits for further threads
    steps = run(Config(gate="--no-gate" not in sys.argv))
    print("iteration  reward  held-out  gate")
    for step in steps[4::5]:
        print(f"{step.iteration:9d}  {step.reward:6.2f}  {step.judged:8.2f}  {step.verdict}")
