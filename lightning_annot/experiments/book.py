"""The page of results, written from run files alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from lightning_annot.experiments.chapters import CHAPTERS, Book
from lightning_annot.experiments.curves import Run, read_run
from lightning_annot.experiments.grid import Cell
from lightning_annot.experiments.page import Page
from lightning_annot.experiments.peers import write_peers
from lightning_annot.files import write_text

_INTRODUCTION = """Written by `python scripts/results.py` from the files of its runs; every number and sentence below is
computed from them. Values are mean ± standard deviation over seeds. Answers are counted for each image that is not a prototype;
"to 90%" is the first round at or above, without interpolation. A run ends after 10 rounds that finish no more images. Bands
in the pictures are one standard deviation; a curve that ended early is carried on at its last value. ECE: calibration error of
the label's confidence in 10 bins."""


def write_book(path: Path, cells: Mapping[str, Sequence[Cell]], runs_dir: Path, book: Book, peers: pd.DataFrame | None) -> None:
    """Write all sections of ``cells``, and the peers if there is a table of them, to ``path``."""
    runs = {name: _ended(some, runs_dir) for name, some in cells.items()}
    page = Page()
    page.add("# Results", _INTRODUCTION, _about([run for some in runs.values() for run in some]))
    for name, (title, write) in CHAPTERS.items():
        if name not in cells:
            continue
        page.add(f"## {title}")
        missing = [cell.name for cell in cells[name] if cell.name not in {run.folder.name for run in runs[name]}]
        if missing:
            page.add(f"{len(missing)} of {len(cells[name])} runs have not ended and are not in what follows: {_few(missing)}.")
        if runs[name]:
            write(page, runs[name], book)
    if peers is not None:
        page.add("## Peers")
        write_peers(page, peers, book.folder, book.pictures)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page.text)


def _ended(cells: Sequence[Cell], runs_dir: Path) -> list[Run]:
    folders = [runs_dir / cell.name for cell in cells]
    return [read_run(folder) for folder in folders if (folder / "summary.json").is_file()]


def _about(runs: Sequence[Run]) -> str:
    """Machine, versions and commits as the runs noted them; a run is told once however many sections show it."""
    each = list({run.folder: run for run in runs}.values())
    if not each:
        return "No run has ended."
    told = {key: ", ".join(sorted({run.environment[key] for run in each})) for key in each[0].environment}
    seeds = sorted({int(str(run.at("seed"))) for run in each})
    minutes = sum(run.seconds for run in each) / 60
    return (
        f"{len(each)} runs, seeds {', '.join(map(str, seeds))}; the rounds took {minutes:.0f} minutes of one core in all. "
        f"Machine: {told['cpu']}, {told['cores']} cores, {told['memory']}. Python {told['python']}, torch {told['torch']}, "
        f"commit {told['commit']}."
    )


def _few(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
