"""``autotelic compare``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ..errors import UsageError
from ..sweep import MEAN, dump
from .arms import read_arms
from .budget import Budget
from .contrasts import Pair
from .study import Comparison


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def main(words: Sequence[str], use: Sequence[str] = ()) -> int:
    """Compare recipes from one start per seed at an equal budget.

    Run again with the same words it goes on where it stood.
    """
    from ..trainers.runs.compared import table_of

    options = parser().parse_args(list(words))
    arms = read_arms(options.arms, options.set)
    comparison = Comparison(
        arms,
        seeds_of(options.seeds),
        Budget.of(options.budget),
        options.output_dir or Path("runs") / "comparison",
        primary=[pair_of(text) for text in options.primary],
        measures=options.measures,
        jobs=options.jobs,
        debug=options.debug,
        use=tuple(use),
    )
    document = comparison.run()
    print(table_of(document))
    print(f"page: {comparison.path.with_suffix('.html')}")
    if options.json:
        options.json.write_text(dump(document))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = _Parser(prog="autotelic compare", description=(main.__doc__ or "").partition("\n")[0])
    made.add_argument("arms", nargs="+", metavar="RECIPE[:FLAGS]", help='or NAME=RECIPE:FLAGS; "vlm/grpo:--lr 1e-3"')
    made.add_argument("--seeds", type=int, nargs="+", required=True, help="how many, from 0; or several, themselves")
    made.add_argument(
        "--budget", required=True, help="of each run: 90s (CPU or GPU seconds), 4000queries, 16steps, or own rounds"
    )
    made.add_argument("--primary", nargs="+", default=[], metavar="A>B", help="claims; every other arm over the first")
    made.add_argument("--measures", nargs="+", default=[MEAN], help="what is compared; the mean outcome if not given")
    made.add_argument("--set", default="", metavar="FLAGS", help="flags of every arm, in one word")
    made.add_argument("--jobs", type=int, default=1, help="runs at a time")
    made.add_argument("--debug", action="store_true", help="set out from the recipes' presets of two small steps")
    made.add_argument("--output-dir", type=Path, help="folder of the runs; runs/comparison if not given")
    made.add_argument("--json", type=Path, help="write the results here as well")
    return made


def seeds_of(numbers: Sequence[int]) -> tuple[int, ...]:
    """One number counts seeds from 0; several are the seeds. Raises UsageError: none, or one twice."""
    seeds = tuple(range(numbers[0])) if len(numbers) == 1 else tuple(numbers)
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds {' '.join(map(str, numbers))} are no seeds: how many there are, or several of them")
    return seeds


def pair_of(text: str) -> Pair:
    """(better, than) from "A>B". Raises UsageError for anything else."""
    better, sign, than = (part.strip() for part in text.partition(">"))
    if not (better and sign and than):
        raise UsageError(f'--primary "{text}" is not A>B, an arm and one that it is better than')
    return better, than
