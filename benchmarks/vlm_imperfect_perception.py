"""Does self_critique improve a model whose perception is not perfect, over its start and over imitating on?

    python benchmarks/vlm_imperfect_perception.py [--quick] [--json FILE] [--runs FOLDER] [--seeds 10 ... 17]
                                                  [--arms ...] [--budget 120s] [--jobs 1]

As benchmarks/vlm_self_improvement.py, in pictures of `--noise 70`: the start reads 94 of 100 cells rightly and 87 of
100 that hold an object, so that its critic, a rule over that reading, is wrong at times. Runs that stand finished in
the folder are read, not repeated.
"""

from __future__ import annotations

from common import Study
from vlm_self_improvement import OPEN
from vlm_self_improvement import STUDY as PERFECT

STUDY = Study(
    recipe=PERFECT.recipe,
    arms={
        "sft": {"recipe": "vlm/sft"} | OPEN,
        "self_critique": {"recipe": "vlm/self_critique"} | OPEN,
        "self_critique, guarded": {"recipe": "vlm/self_critique"},
        "grpo": OPEN,
        "grpo, random": OPEN | {"rewards": "random"},
    },
    seeds=PERFECT.seeds,
    base=(("self_critique", "sft"), ("self_critique", "grpo, random"), ("grpo", "self_critique")),
    budget=PERFECT.budget,
    quick=PERFECT.quick,
    quick_arms=("grpo", "self_critique"),
    flags={**PERFECT.flags, "noise": 70},
)

if __name__ == "__main__":
    STUDY.main(__doc__)
