"""How far does evolve_vla carry: to ten tasks, to a task that the policy was never shown, to pictures?

    python benchmarks/evolve_vla_breadth.py [--quick] [--json FILE] [--runs FOLDER] [--seeds 0 1 2 3 4] [--arms ...]
                                            [--workers 1]

"ten tasks" are those of MetaWorld's MT10, with one demonstration where a thing has its place on the table and three
where the goal moves. Rule S: the critic learned from the policy's own demonstrations. Rule F: its network was
pretrained on MetaWorld's other tasks, whose successes it was told, and given the same demonstrations. "unseen tasks":
the policy imitated other tasks only; the critic is that of rule F and has three demonstrations of each, which the
control imitates. "pictures": policy and critic see 64-pixel frames. Success in percent on 40 held-out initial states
per task, greedy, before and after; "continued imitation" is the control of the same starts. Nothing was chosen on
these states or seeds. Runs that stand finished in the folder are read, not repeated.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from evolve_vla import launch, summary

from autotelic.trainers.run_folder import RunFolder, versions

MT10 = ["reach-v3:3", "push-v3:3", "pick-place-v3:3", "door-open-v3", "drawer-open-v3", "drawer-close-v3"]
MT10 += ["button-press-topdown-v3", "peg-insert-side-v3:3", "window-open-v3", "window-close-v3"]
TEN = ["--tasks", *MT10]
PICTURES = ["--sees", "frames", "--tasks", "drawer-open-v3:3", "door-open-v3:3", "drawer-close-v3:3"]
UNSEEN = ["--tasks", "drawer-close-v3:3", "button-press-topdown-v3:3"]
OTHERS = ["drawer-open-v3:3", "window-open-v3:3", "door-open-v3:3", "push-v3:3", "reach-v3:3", "button-press-v3:3"]
READER = ["--critic", "pretrained"]
ARMS: dict[str, list[str]] = {
    "ten tasks, rule S": ["vla/evolve_vla", *TEN],
    "ten tasks, rule F": ["vla/evolve_vla", *TEN, *READER],
    "ten tasks, continued imitation": ["vla/more_imitation", "--tasks", *MT10],
    "unseen tasks": ["vla/evolve_vla", *UNSEEN, "--clone-tasks", *OTHERS, *READER, "--iterations", "32"],
    "unseen tasks, imitated after all": ["vla/more_imitation", *UNSEEN, "--iterations", "1"],
    "pictures": ["vla/evolve_vla", *PICTURES],
    "pictures, continued imitation": ["vla/more_imitation", *PICTURES, "--steps", "20"],
}
QUICK = ["--tasks", "drawer-close-v3", "--iterations", "1", "--states", "1", "--eval-episodes", "4"]
QUICK += ["--clone-steps", "100"]
COMMAND = "python benchmarks/evolve_vla_breadth.py --json benchmarks/evolve_vla_breadth.json"


def words(arm: str, seed: int, quick: bool) -> list[str]:
    """What the command line is given."""
    return [*ARMS[arm], "--seed", str(seed), *(QUICK if quick else [])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one arm, one task, one seed, one iteration")
    parser.add_argument("--json", type=Path, help="write the figures here; arms that this call left out stay")
    parser.add_argument("--runs", type=Path, help="keep the run folders here")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    options = parser.parse_args()
    arms, seeds = options.arms, options.seeds
    if options.quick:
        arms, seeds = ["ten tasks, rule S"], [0]
    runs = options.runs or Path(tempfile.mkdtemp(prefix="evolve-vla-breadth-"))
    places = {(a, s): runs / f"{a.replace(', ', '-').replace(' ', '-')}-{s}" for a in arms for s in seeds}
    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(lambda key: launch(words(*key, options.quick), places[key]), places))
    figures: dict[str, Any] = {}
    if options.json and options.json.exists() and not options.quick:
        figures = json.loads(options.json.read_text())["figures"]
    for arm in arms:
        row = summary([RunFolder.open(places[arm, seed]) for seed in seeds])
        figures[arm] = {"options": " ".join(ARMS[arm]), "seeds": seeds, **row}
        print(
            f"{arm:32} {row['mean_before']:5.1f} -> {row['mean_after']:5.1f}  {row['mean_gain_interval']}", flush=True
        )
    if options.json:
        document = {"command": COMMAND, "machine": platform.machine(), "versions": versions(), "figures": figures}
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
