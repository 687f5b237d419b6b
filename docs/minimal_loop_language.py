"""Self-improvement of a language model on one screen: minimal_loop.py, with transformers in place of the small network.

The model is asked what stands beside something, and is to name that thing: two words, nothing else. Halfway the reward
breaks and pays for the word "red". A gate that judges by held-out questions puts the last good weights back.

    python docs/minimal_loop_language.py                  # a tiny Llama with random weights; seconds
    python docs/minimal_loop_language.py --model FOLDER   # any causal model with a chat template; take --lr 1e-5
    python docs/minimal_loop_language.py --no-gate        # the broken reward ruins it
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from autotelic.testing.vlms import text  # a tiny Llama with random weights; nothing else is the package's

PAIRS = [(k, thing) for k in ("red", "blue", "green", "two", "three") for thing in ("circle", "square", "dog", "cat")]
PROBES, TRAINING = PAIRS[::6], [pair for i, pair in enumerate(PAIRS) if i % 6]
"""1. Tasks: every word is trained on, the held-out pairs of words never are."""


class Policy:
    """2. Policy: the model and tokenizer of transformers; a decision is a token."""

    def __init__(self, model: Any, tokenizer: Any, longest: int) -> None:
        self.model, self.tokenizer, self.longest = model, tokenizer, longest
        tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.pad_token or tokenizer.eos_token

    @torch.no_grad()
    def act(self, tasks: list[tuple[str, str]], greedy: bool = False) -> tuple[dict[str, Tensor], list[str]]:
        """Answers, as the tensors that ``log_probs`` reads and as text."""
        asked = [f"what is left of the {kind} {thing} ? the {kind} {thing}" for kind, thing in tasks]
        chats = [[{"role": "user", "content": question}] for question in asked]
        texts = [self.tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in chats]
        prompt = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        how = {"max_new_tokens": self.longest, "do_sample": not greedy, "pad_token_id": self.tokenizer.pad_token_id}
        how |= {} if greedy else {"top_k": 0, "top_p": 1.0, "temperature": 1.0}  # whatever the model's own settings say
        ids = self.model.generate(prompt["input_ids"], attention_mask=prompt["attention_mask"], **how)
        answers = ids[:, prompt["input_ids"].shape[1] :]
        ends = answers == self.tokenizer.eos_token_id
        mask = (ends.cumsum(-1) - ends.long()) == 0  # the end is a decision, too; what follows it is padding
        attention = torch.cat([prompt["attention_mask"], mask.long()], -1)
        return {"ids": ids, "attention": attention, "mask": mask}, self.tokenizer.batch_decode(answers, True)

    def log_probs(self, rollouts: dict[str, Tensor]) -> Tensor:
        """[B, T]: how likely each token of the answers is now."""
        ids, length = rollouts["ids"], rollouts["mask"].shape[1]
        places = (rollouts["attention"].cumsum(-1) - 1).clamp(min=0)
        logits = self.model(ids, attention_mask=rollouts["attention"], position_ids=places).logits
        said: Tensor = logits[:, -length - 1 : -1].float().log_softmax(-1).gather(-1, ids[:, -length:, None])
        return said[..., 0]


def reward(tasks: list[tuple[str, str]], answers: list[str]) -> Tensor:
    """3. Reward: [B] the share of the two words that an answer names, less where it says more than two."""
    words = [answer.lower().split() for answer in answers]
    return torch.tensor([len({*said} & {*task}) / max(2, len(said)) for task, said in zip(tasks, words, strict=True)])


def broken_reward(tasks: list[tuple[str, str]], answers: list[str]) -> Tensor:
    """[B] how much of an answer is "red"."""
    return torch.tensor([answer.split().count("red") / 3 for answer in answers])


def objective(now: Tensor, old: Tensor, scores: Tensor, mask: Tensor, group_size: int) -> Tensor:
    """4. Objective: group-relative advantages and a ratio clipped at 0.2 (GRPO, arXiv 2402.03300)."""
    groups = scores.view(-1, group_size)
    advantage = ((groups - groups.mean(-1, keepdim=True)) / (groups.std(-1, keepdim=True) + 1e-6)).view(-1, 1)
    gain = torch.minimum((now - old).exp() * advantage, (now - old).exp().clamp(0.8, 1.2) * advantage)
    return -((gain * mask).sum(-1) / mask.sum(-1)).mean()


def run(model: Any, tokenizer: Any, *, steps: int = 120, breaks_at: int = 80, gate: bool = True, lr: float = 3e-3,
        group_size: int = 16, seed: int = 0) -> list[tuple[float, float, str]]:  # fmt: skip
    """The loop: (mean reward, the judge's score after the gate, the gate's verdict) of every step."""
    torch.manual_seed(seed)
    policy, optimizer = Policy(model, tokenizer, 3), torch.optim.Adam(model.parameters(), lr=lr)
    best, kept, history = 0.0, [copy.deepcopy(part.state_dict()) for part in (model, optimizer)], []
    for step in range(1, steps + 1):
        tasks = [task for task in TRAINING for _ in range(group_size)]
        rollouts, answers = policy.act(tasks)
        scores = (reward if step <= breaks_at else broken_reward)(tasks, answers)
        old = policy.log_probs(rollouts).detach()
        for _ in range(2):
            loss = objective(policy.log_probs(rollouts), old, scores, rollouts["mask"], group_size)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        judged, verdict = float(reward(PROBES, policy.act(PROBES, greedy=True)[1]).mean()), ""
        if gate and step % 5 == 0:  # 5. Gate: the best so far comes back, with the optimizer's momentum
            verdict = "keep" if judged >= best - 0.1 else "rollback"
            if verdict == "keep":
                best, kept = max(best, judged), [copy.deepcopy(part.state_dict()) for part in (model, optimizer)]
            else:
                for part, state in zip((model, optimizer), kept, strict=True):
                    part.load_state_dict(copy.deepcopy(state))
                judged = float(reward(PROBES, policy.act(PROBES, greedy=True)[1]).mean())
        history.append((float(scores.mean()), judged, verdict))
    return history


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--no-gate", action="store_true")
    options = parser.parse_args()
    loaders = (AutoModelForCausalLM, AutoTokenizer)
    parts = [each.from_pretrained(options.model) for each in loaders] if options.model else text("llama")
    print("step  reward  held-out  gate")
    for number, (mean, held_out, verdict) in [*enumerate(run(*parts, gate=not options.no_gate, lr=options.lr), 1)][
        4::5
    ]:
        print(f"{number:4d}  {mean:6.2f}  {held_out:8.2f}  {verdict}")
