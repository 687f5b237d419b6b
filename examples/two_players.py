"""A game: a solver is paid when a checker believes its answer, the checker when it is right about the answer.

autotelic run examples/two_players.py
"""

from dataclasses import dataclass, replace

from autotelic import Game, LanguageConfig
from autotelic.rewards.text.verifiers import Exact
from autotelic.vlm.setting import start


class SolverAndChecker(Game):
    """The checker is asked "QUESTION check ANSWER", and says yes or no. Evaluation judges the solver, alone."""

    players = ("solver", "checker")
    parts = ("policy", "checker")

    def __init__(self, solver, checker):
        self.policy, self.checker = solver, checker

    def play(self, tasks, n, *, key, **sampling):
        answers = self.policy.act(tasks, n, key=key, **sampling)
        asked = [
            replace(each.task, id=f"{each.task.id}/{row}", prompt=f"{each.task.prompt} check {each.output}")
            for row, each in enumerate(answers)
        ]
        checks = self.checker.act(asked, 1, key=key, **sampling)
        for answer, check in zip(answers, checks, strict=True):
            answer.player, check.player = self.players
            check.group = f"checks/{answer.task.id}"  # all checks of a question are compared
            answer.info["believed"] = check.info["believed"] = "yes" in check.output.split()
            check.info["right"] = Exact()([answer.output], [answer.task.reference])[0]
        return [*answers, *checks]


def paid(rollouts, **columns):
    """1 or 0; only the checker's part reads the right answers."""
    return [float(each.info["believed"] == each.info.get("right", True)) for each in rollouts]


@dataclass(frozen=True)
class Config(LanguageConfig):
    objective: str = "grpo"
    gate: str = "none"


def build(config, folder):
    setting = start(config, folder)
    game = SolverAndChecker(setting.policy, setting.policy.trainable("checker"))
    solver = setting.learner(players=("solver",))
    checker = replace(setting, policy=game.checker).learner(players=("checker",), anchors=None)
    learners = {"solver": solver, "checker": checker}
    return setting.experiment([setting.stage(solver, paid, actor=game, learners=learners)])
