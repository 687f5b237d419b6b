"""A memory in the prompt: the best answer to the most similar question so far is shown before every question.

autotelic run examples/memory.py --model FOLDER --data questions.jsonl
"""

from dataclasses import replace

from autotelic import Learner, SystemWrapper
from autotelic.vlm.recipes.grpo import Config  # noqa: F401  GRPO's options are this recipe's
from autotelic.vlm.setting import start


class Memory(Learner):
    """Question -> [score, answer] of its best answer; a learner, so that checkpoints and rollbacks hold it."""

    reads = ("output", "task")  # what of other processes' rollouts it looks at, beside scores

    def __init__(self):
        self.notes = {}

    def update(self, rollouts):
        for rollout in rollouts:
            question, score = rollout.task.extra["question"], rollout.scores["total"]
            if score is not None and float(score) > self.notes.get(question, [-1.0])[0]:
                self.notes[question] = [float(score), rollout.output]
        return {"memory/notes": float(len(self.notes))}

    def show(self, question):
        shared = {note: len({*note.split()} & {*question.split()}) for note in self.notes if note != question}
        best = max(shared, key=shared.get, default="")
        return f"{best} {self.notes[best][1]} {question}" if best else question

    def state_dict(self):
        return {"notes": dict(self.notes)}

    def load_state_dict(self, state):
        self.notes = dict(state["notes"])


class Remembering(SystemWrapper):
    """A policy and its memory: evaluated, forked and promoted together."""

    parts = ("policy", "memory")

    def __init__(self, policy):
        self.policy, self.memory = policy, Memory()

    def act(self, tasks, n, **how):
        told = [replace(t, prompt=self.memory.show(t.prompt), extra={**t.extra, "question": t.prompt}) for t in tasks]
        return self.policy.act(told, n, **how)


def build(config, folder):
    setting = start(config, folder)
    learner, system = setting.learner(), Remembering(setting.policy)
    learners = {"policy": learner, "memory": system.memory}
    return setting.experiment([setting.stage(learner, setting.reward(), actor=system, learners=learners)])
