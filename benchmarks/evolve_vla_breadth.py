"""How far does learning from progress carry: to ten tasks, to a task that the policy was never shown, to pictures?

    python benchmarks/evolve_vla_breadth.py [--quick] [--json FILE] [--runs FOLDER] [--seeds 0 1 2 3 4] [--arms ...]
                                            [--jobs 1]

"ten tasks" are those of MetaWorld's MT10, with one demonstration where a thing has its place on the table and three
where the goal moves. Rule S: the critic learned from the policy's own demonstrations. Rule F: its network was
pretrained on MetaWorld's other tasks, whose successes it was told, and given the same demonstrations. The mechanism of
EVOLVE-VLA is evolve_vla, all others that act are best_progress. "unseen tasks":
the policy imitated other tasks only; the critic is that of rule F and has three demonstrations of each, which the
control imitates. "pictures": policy and critic see 64-pixel frames. Success on 40 held-out initial states per task,
greedy, before and after; "continued imitation" is the control of the same starts. Settings were chosen on other states
and seeds, with earlier figures on these known (docs/results.md). Runs that stand finished in the folder are read, not
repeated.
"""

from __future__ import annotations

from common import Study
from evolve_vla import FILMED, QUICK, figures

MT10 = ("reach-v3:3", "push-v3:3", "pick-place-v3:3", "door-open-v3", "drawer-open-v3", "drawer-close-v3")
MT10 += ("button-press-topdown-v3", "peg-insert-side-v3:3", "window-open-v3", "window-close-v3")
TEN = {"tasks": MT10}
PICTURES = {"obs_type": "pixels", "tasks": ("drawer-open-v3:3", "door-open-v3:3", "drawer-close-v3:3")}
UNSEEN = {"tasks": ("drawer-close-v3:3", "button-press-topdown-v3:3")}
OTHERS = ("drawer-open-v3:3", "window-open-v3:3", "door-open-v3:3", "push-v3:3", "reach-v3:3", "button-press-v3:3")
READER = {"critic": "pretrained"}
MECHANISM = {"recipe": "vla/evolve_vla"}
IMITATION = {"recipe": "vla/more_imitation"}
STUDY = Study(
    recipe="vla/best_progress",
    arms={
        "ten tasks, rule S": TEN,
        "ten tasks, the paper's mechanism": TEN | MECHANISM,
        "ten tasks, rule F": TEN | READER,
        "ten tasks, continued imitation": TEN | IMITATION,
        "unseen tasks": UNSEEN | READER | {"clone_tasks": OTHERS, "max_steps": 32},
        "unseen tasks, imitated after all": UNSEEN | IMITATION | {"max_steps": 1},
        "pictures": PICTURES,
        "pictures, the paper's mechanism": PICTURES | MECHANISM,
        "pictures, continued imitation": PICTURES | IMITATION | {"epochs": 20, "max_steps": 16},
    },
    seeds=range(5),
    base=(
        ("ten tasks, rule S", "ten tasks, continued imitation"),
        ("ten tasks, the paper's mechanism", "ten tasks, rule S"),
        ("ten tasks, rule F", "ten tasks, continued imitation"),
        ("unseen tasks", "unseen tasks, imitated after all"),
        ("pictures", "pictures, continued imitation"),
        ("pictures, the paper's mechanism", "pictures, continued imitation"),
    ),
    common=False,
    quick=QUICK | {"tasks": ("drawer-close-v3",)},
    quick_arms=("ten tasks, rule S", "ten tasks, continued imitation"),
    flags=FILMED,
    further=figures,
)

if __name__ == "__main__":
    STUDY.main(__doc__)
