"""What do loops of self-improvement reach with a small vision-language model, and what do their controls?

    python benchmarks/vlm_self_improvement.py [--quick] [--json FILE] [--runs FOLDER] [--seeds 10 ... 17] [--arms ...]
                                              [--budget 120s] [--jobs 1]

Every arm starts from the same small model per seed: taught to see, name and find, then 150 traced demonstrations of
seven types of multi-step questions, no view of which asks a held-out composition. All are judged greedily on 2,100
held-out questions, and by 16 samples on 210 of them. Every arm gets as many CPU seconds of acting, learning and gate,
which a short run on a seed of its own makes into rounds. Gates are off, so that nothing is undone: "guarded" arms are
those whose loops stand with the recipe's own gate beside. Controls: "sft" goes on imitating the demonstrations, and
"grpo, random" is paid for nothing. Arms and claims are those of the table in docs/results.md; settings were chosen on
split 1 with seeds from 100 on, and seeds 10-17 were looked at for nothing else. Runs that stand finished in the folder
are read, not repeated.
"""

from __future__ import annotations

from typing import Any

from common import Study

from autotelic.sweep import Results, Sweep

OPEN = {"gate": "none"}
CRITIQUE, REWARDING, SCORE, SFT = (
    {"recipe": f"vlm/{name}"} | OPEN for name in ("self_critique", "self_rewarding", "score", "sft")
)
EVOL = {"recipe": "vlm/evol_rl"} | OPEN
LABELLED = ("grpo", "gspo", "dapo", "raft", "score", "score, no bonus")


def further(sweep: Sweep, results: Results) -> dict[str, Any]:
    """Which arms read labels in training."""
    return {"labels_in_training": [arm for arm in results.runs if arm in LABELLED]}


STUDY = Study(
    recipe="vlm/grpo",
    arms={
        "sft": SFT,
        "grpo": OPEN,
        "grpo, random": OPEN | {"rewards": "random"},
        "gspo": OPEN | {"objective": "gspo"},
        "dapo": OPEN | {"objective": "dapo"},
        "raft": {"recipe": "vlm/raft"} | OPEN,
        "self_critique": CRITIQUE,
        "self_critique, guarded": {"recipe": "vlm/self_critique"},
        "score": SCORE,
        "score, no bonus": SCORE | {"bonus": 0},
        "self_rewarding": REWARDING,
        "temporal": {"recipe": "vlm/temporal"} | OPEN,
        "cream": {"recipe": "vlm/cream"} | OPEN,
        "evol_rl": EVOL,
        "evol_rl, no novelty": EVOL | {"novelty": False},
        "ttrl": {"recipe": "vlm/ttrl"} | OPEN,
    },
    seeds=range(10, 18),
    base=(
        ("self_critique", "sft"),
        ("self_critique", "grpo, random"),
        ("grpo", "grpo, random"),
        ("gspo", "grpo"),
        ("dapo", "grpo"),
        ("grpo", "raft"),
        ("score", "score, no bonus"),
        ("temporal", "self_rewarding"),
        ("cream", "self_rewarding"),
        ("evol_rl", "ttrl"),
        ("evol_rl", "evol_rl, no novelty"),
    ),
    budget="120s",
    quick={"eval_episodes": 10, "demonstrations": 0, "gate_every": 4, "samples": 2},
    quick_arms=("grpo", "self_critique"),
    flags={"eval_episodes": 300, "samples": 16, "sampled_questions": 30},
    further=further,
)

if __name__ == "__main__":
    STUDY.main(__doc__)
