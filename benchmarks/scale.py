"""What one GPU and several processes ask for, counted where no GPU is: memory, launches, precision, messages.

    python benchmarks/scale.py [--quick] [--json FILE] [--parts memory decode ...]

Each part is a module of ``benchmarks/scale_parts`` and says there what its figures are and how they are counted: peaks
on fake tensors of the real architectures, bytes and operators on small models, differences between one process and two.
Nothing here was measured on a GPU; ``autotelic doctor --gpu`` measures there.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from common import parser_of, save

PARTS = ("memory", "decode", "precision", "ranks", "robots")


def main() -> None:
    parser = parser_of(__doc__, "fewer and smaller cases of each part")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for part in options.parts:
        figures = import_module(f"scale_parts.{part}").figures(options.quick)
        if twice := found.keys() & figures.keys():
            raise ValueError(f"{part} has figures of others' names: {', '.join(sorted(twice))}")
        for name, figure in figures.items():
            print(f"{part}: {name} {figure}", flush=True)
        found |= figures
    save(options, found)


if __name__ == "__main__":
    main()
