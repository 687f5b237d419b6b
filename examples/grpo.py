"""GRPO from Python, with a reward and rows of one's own: python examples/grpo.py FOLDER_OR_HUB_NAME."""

import sys

from autotelic import Trainer

rows = [{"prompt": f"What is {a} + {b}?", "answer": str(a + b)} for a in range(10) for b in range(10)]


def brief_and_right(completions, answer, **columns):
    return [(right in said) - 0.01 * len(said) for said, right in zip(completions, answer, strict=True)]


Trainer("vlm/grpo", model=sys.argv[1], data=rows, rewards=brief_and_right, max_steps=20).train()
