"""Figures of the runs below a folder: curves over seeds, and one figure for each thing that varies among them.

    python scripts/figures.py checkpoints/c --out docs/results

Draws whatever the runs can fill: methods, risk threshold, number of workers, labels a round, priors, task assignment with
worker importance, noise, distractors, features, validation, early stopping, best five classes, and confusions. Curves read
from the paper's own figures (``--paper``) are dashed where the same kind of setting is there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lightning_annot.experiments.curves import read_runs
from lightning_annot.experiments.figures import draw_all
from lightning_annot.experiments.specs import read_paper
from lightning_annot.types import AnnotError

ROOT = Path(__file__).resolve().parents[1]
PAPER = ROOT.parent / "shared" / "paper" / "paper_curves.json"


def main(argv: list[str] | None = None) -> int:
    """Draw all figures and print their paths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path, help="folder of runs, as scripts/ablate.py leaves it")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results", help="folder of the pictures")
    parser.add_argument("--paper", type=Path, default=PAPER, help="JSON of the paper's curves")
    given = parser.parse_args(argv)
    if not given.paper.is_file():
        print(f"{given.paper} is absent: no dashed lines of the paper", file=sys.stderr)
    try:
        written = draw_all(read_runs(given.dir), given.out, read_paper(given.paper))
    except AnnotError as error:
        print(f"figures: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
