"""The results in one command: runs what is missing, draws the figures and writes docs/results.md from the runs' files.

    python scripts/results.py                          # about 170 runs, about 40 minutes on 2 cores
    python scripts/results.py --only methods threshold # some sections
    python scripts/results.py --full                   # 200 answers a round, more values, 5 seeds: a day
    python scripts/results.py --miniature --out /tmp/results.md --runs /tmp/runs

Runs that have ended are not run again; a killed command goes on. Needs the data of configs/simulated.yaml and
configs/recorded.yaml (``ANNOT_DATA``); ``--config`` and ``--recorded`` name others, and sections that these cannot have are
left out.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

from lightning_annot.experiments.book import write_book
from lightning_annot.experiments.chapters import CHAPTERS, Book
from lightning_annot.experiments.grid import read_settings, unique
from lightning_annot.experiments.peers import read_peers
from lightning_annot.experiments.plan import Plan, cells_of, large, small
from lightning_annot.experiments.released import read_baselines
from lightning_annot.experiments.runner import run_grid
from lightning_annot.experiments.specs import read_paper
from lightning_annot.types import AnnotError

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
SECTIONS = (*CHAPTERS, "peers")
MINIATURE_PEERS = ["--items", "400", "--seeds", "11", "--rounds", "2"]


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = found.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_true", help="200 answers a round, more values, 5 seeds")
    size.add_argument("--miniature", action="store_true", help="two rounds, few values, one seed: does everything work?")
    found.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, metavar="SECTION", help=", ".join(SECTIONS))
    found.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs side by side (default: number of cores)")
    found.add_argument("--runs", type=Path, default=ROOT / "checkpoints" / "results", help="folder of the runs")
    found.add_argument("--out", type=Path, default=ROOT / "docs" / "results.md", help="the page; pictures go beside it")
    found.add_argument("--config", default=Plan.config, help="configuration with simulated workers")
    found.add_argument("--recorded", default=Plan.recorded, help="configuration with recorded people")
    found.add_argument("--baselines", type=Path, default=SHARED / "baselines", help="folder of the released code's curves")
    found.add_argument("--paper", type=Path, default=SHARED / "paper" / "paper_curves.json", help="JSON of the paper's curves")
    found.add_argument("--peers", type=Path, help="table of scripts/compare_peers.py (default: peers.csv among the runs)")
    found.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="a setting of every run")
    return found


def plan_of(given: argparse.Namespace) -> Plan:
    """The plan that the options ask for."""
    path = ROOT / given.config
    if not path.is_file():
        raise AnnotError(f"{given.config} does not exist; give a configuration as lightning-annot fit takes it.")
    grouped = "groups_file" in path.read_text(encoding="utf-8")
    plan = Plan(given.config, given.recorded, grouped=grouped, extra=read_settings(given.set))
    return small(plan) if given.miniature else large(plan) if given.full else plan


def peers_table(given: argparse.Namespace) -> pd.DataFrame | None:
    """The peers' table, made first if it is not there; None where that fails."""
    path = given.peers or given.runs / "peers.csv"
    if not path.is_file():
        command = [sys.executable, str(ROOT / "scripts" / "compare_peers.py"), "--out", str(path)]
        done = subprocess.run([*command, *(MINIATURE_PEERS if given.miniature else [])], cwd=ROOT, check=False)
        if done.returncode or not path.is_file():
            print("scripts/compare_peers.py left no table: no section on peers", file=sys.stderr)
            return None
    return read_peers(path)


def main(argv: list[str] | None = None) -> int:
    """Run, draw and write; 1 if a run failed, 2 if the command cannot be."""
    given = parser().parse_args(argv)
    for path in (given.paper, given.baselines):
        if not path.exists():
            print(f"{path} is absent: its curves are left out", file=sys.stderr)
    try:
        plan = plan_of(given)
        cells = cells_of(plan, given.only)
        if left := [name for name in given.only if name not in cells and name != "peers"]:
            print(f"{given.config} has no groups of workers: without {', '.join(left)}", file=sys.stderr)
        book = Book(given.out.parent, given.out.parent / "results", read_paper(given.paper), read_baselines(given.baselines))
        outcome = run_grid(unique(cell for some in cells.values() for cell in some), given.runs, ROOT, given.jobs)
        peers = peers_table(given) if "peers" in given.only else None
        write_book(given.out, cells, given.runs, book, peers)
    except AnnotError as error:
        print(f"results: {error}", file=sys.stderr)
        return 2
    for name, tail in outcome.failed.items():
        print(f"\n{name} failed; the end of {given.runs / name / 'run.log'}:\n{tail}", file=sys.stderr)
    print(f"{given.out} ({outcome})")
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    sys.exit(main())
