"""The last words of a run in the terminal."""

from __future__ import annotations

import os
from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from lightning_annot.report.run_files import evidence_note, headlines, read_run

_SHOWN_FILES = ("report.html", "labels.csv", "workers.csv", "rounds.csv", "annotations.db")


def print_summary(console: Console, run_dir: str | os.PathLike[str]) -> None:
    """Print what a run reached and where its files are. Raises AnnotError when the folder has no ``labels.csv``."""
    run = read_run(run_dir)
    title = escape(run.directory.resolve().name)
    table = Table(title=title, title_style="bold", title_justify="left", show_header=False, box=box.SIMPLE_HEAD)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(justify="right", style="bold", no_wrap=True)
    table.add_column(style="dim")
    for line in headlines(run):
        table.add_row(line.name, line.value, line.note)
    console.print(table)
    if note := evidence_note(run):
        console.print(Text.assemble(("Stated error: ", "bold"), note), highlight=False)
    if reason := run.summary.get("stop_reason"):
        console.print(Text.assemble(("Stopped: ", "bold"), str(reason)))
    print_lines(console, (f"  {path}" for name in _SHOWN_FILES if (path := run.directory / name).exists()))


def print_lines(console: Console, lines: Iterable[str]) -> None:
    """Print ``lines`` as they are: paths and commands must survive copying, so nothing is wrapped or styled by its parts."""
    for line in lines:
        console.print(Text(line), soft_wrap=True, highlight=False)
