"""BOTS, a curriculum: a Beta posterior of every task's pass rate, and the tasks that are drawn next to one half of it.

autotelic run vlm/grpo --curriculum examples/curriculum.py:BOTS --model FOLDER --data questions.jsonl
"""

from dataclasses import replace

import numpy as np

from autotelic import Curriculum


class BOTS(Curriculum):
    """Bayesian online task selection with explicit evidence alone: every posterior falls back to Beta(1, 1) by a share
    ``forget`` per round (lambda), and rollouts of a task add their successes and failures. Thompson samples next to
    ``target`` win. Of an endless source the first ``most`` tasks are taken."""

    def __init__(self, sources, seed=0, target=0.5, forget=0.1, most=200):
        self.tasks, self.seed, self.target, self.forget = [], seed, target, forget
        for category, source in sources.items():
            several = [source(index) for index in range(most)] if callable(source) else source
            self.tasks += [replace(task, category=task.category or category) for task in several]
        self.row = {task.id: row for row, task in enumerate(self.tasks)}
        self.passed, self.failed = np.ones((2, len(self.tasks)))
        self.updates = 0

    def sample(self, n):
        guess = np.random.default_rng([self.seed, self.updates]).beta(self.passed, self.failed)
        order = np.abs(guess - self.target).argsort(kind="stable")
        return [self.tasks[order[i % len(order)]] for i in range(n)]

    def update(self, rollouts):
        self.passed += self.forget * (1 - self.passed)
        self.failed += self.forget * (1 - self.failed)
        for rollout in rollouts:
            success = rollout.scores["total"]
            if success is not None and rollout.task.id in self.row:
                row, success = self.row[rollout.task.id], min(max(float(success), 0.0), 1.0)
                self.passed[row] += success
                self.failed[row] += 1 - success
        self.updates += 1
        rates = self.passed / (self.passed + self.failed)
        return {"curriculum/pass_rate": rates.mean(), "curriculum/undecided": np.mean(abs(rates - self.target) < 0.2)}

    def state_dict(self):
        return {"passed": self.passed.tolist(), "failed": self.failed.tolist(), "updates": self.updates}

    def load_state_dict(self, state):
        self.passed, self.failed = np.array(state["passed"]), np.array(state["failed"])
        self.updates = int(state["updates"])
