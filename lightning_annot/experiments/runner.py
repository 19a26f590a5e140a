"""Runs of the real command line side by side, each in a process of its own that has the imports done already."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lightning_annot.experiments.grid import DEFAULTS, Cell
from lightning_annot.experiments.machine import environment
from lightning_annot.files import write_text
from lightning_annot.locks import alone_in
from lightning_annot.stored import read_object
from lightning_annot.types import AnnotError

LOG, DESCRIPTION = "run.log", "run.json"
TAIL = 12  # lines of a failed run's log that are shown
PRELOAD = ["lightning_annot.cli", "lightning_annot.report.plots", "sklearn.kernel_approximation"]
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

_SERVER = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Job:
    """``arguments`` of ``lightning-annot``, if any; ``then(folder)`` runs in the same process after success."""

    name: str
    folder: Path
    arguments: tuple[str, ...]
    then: Callable[[Path], None] | None = None


@dataclass
class Outcome:
    """Names of runs; ``failed`` with the last lines of their logs."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{len(self.done)} done, {len(self.skipped)} skipped, {len(self.failed)} failed"


def run_grid(cells: Sequence[Cell], directory: Path, root: Path, jobs: int, wandb: str | None = None) -> Outcome:
    """Run the cells below ``directory``, ``jobs`` at a time, from the project's folder ``root``.

    A run that has ended with the same settings is skipped, one that was cut goes on, and a failed one stops no other.
    ``wandb`` is the group under which runs are recorded at Weights & Biases.
    """
    check_jobs(jobs)
    with alone(directory):
        return run_cells(cells, directory, root, jobs, lambda cell, machine: job_of(cell, directory, machine, wandb))


def check_jobs(jobs: int) -> None:
    """Refuse to run nothing at a time."""
    if jobs < 1:
        raise AnnotError(f"jobs {jobs} given; it must be 1 or more.")


def run_cells(
    cells: Sequence[Cell], directory: Path, root: Path, jobs: int, make: Callable[[Cell, Mapping[str, str]], Job]
) -> Outcome:
    """Run those of the cells that have not ended below ``directory``, which the caller holds ``alone``.

    ``make`` gives the job of a cell, from it and from what is known of the machine.
    """
    outcome, machine = Outcome(), environment(root)
    ended = [cell for cell in cells if has_ended(cell, directory)]
    outcome.skipped += [cell.name for cell in ended]
    run_jobs([make(cell, machine) for cell in cells if cell not in ended], root, jobs, outcome)
    return outcome


def job_of(
    cell: Cell,
    directory: Path,
    machine: Mapping[str, str],
    wandb: str | None = None,
    then: Callable[[Path], None] | None = None,
) -> Job:
    """The run of a cell, in a folder of its own that is made here and tells the cell's place in the grid."""
    folder = directory / cell.name
    _describe(cell, folder, machine)
    return Job(cell.name, folder, _arguments(cell, folder, wandb), then)


def run_jobs(todo: Sequence[Job], root: Path, jobs: int, outcome: Outcome) -> None:
    """Run all jobs and note in ``outcome`` how each ended; a progress bar, or a line a run where there is no terminal."""
    waiting, running = deque(todo), dict[int, tuple[Job, BaseProcess]]()
    with _progress(len(todo), outcome) as ended:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    job = waiting.popleft()
                    process = _start(job, root)
                    running[process.sentinel] = (job, process)
                ready = wait(list(running))
                for sentinel in [key for key in running if key in ready]:
                    job, process = running.pop(sentinel)
                    process.join()
                    ended(job, process.exitcode == 0)
        finally:
            for _, process in running.values():
                process.terminate()
            for _, process in running.values():
                process.join()


def _start(job: Job, root: Path) -> BaseProcess:
    job.folder.mkdir(parents=True, exist_ok=True)
    _SERVER.set_forkserver_preload(PRELOAD)
    process = _SERVER.Process(target=_work, args=(job, root))
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)  # the server takes them when the first process starts it
    try:
        process.start()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return process


def _work(job: Job, root: Path) -> None:
    """The process of one run: all that it prints goes to its log, and it ends when the grid is killed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with (job.folder / LOG).open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    from lightning_annot.__main__ import main

    torch.set_num_threads(1)
    folder = job.folder.resolve()
    os.chdir(root)
    sys.argv = ["lightning-annot", *job.arguments]
    if job.arguments and (status := main()):
        sys.exit(status)
    sys.argv = sys.argv[:1]
    if job.then is not None:
        job.then(folder)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # what is committed stays, and the next start goes on from it


def settings_in(cell: Cell, folder: Path) -> dict[str, str]:
    """The cell's settings, for a run whose files go to ``folder``."""
    return {**cell.settings, "annotation.output_dir": str(folder.resolve()), "trainer.enable_progress_bar": "false"}


def words_of(settings: Mapping[str, str]) -> list[str]:
    """Settings as words of the command line."""
    return [word for key, value in settings.items() for word in (f"--{key}", value)]


def _arguments(cell: Cell, folder: Path, wandb: str | None) -> tuple[str, ...]:
    settings = settings_in(cell, folder)
    if wandb is not None:
        settings |= {"trainer.logger": "WandbLogger", "trainer.logger.project": "lightning_annot"}
        settings |= {"trainer.logger.group": wandb, "trainer.logger.name": cell.name}
        settings["trainer.logger.save_dir"] = str(folder.resolve())
    return ("fit", *words_of(settings))


def _describe(cell: Cell, folder: Path, machine: Mapping[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    coordinates = {"method": DEFAULTS["method"], **cell.coordinates}
    about: dict[str, Any] = {"name": cell.name, "config": cell.config, "coordinates": coordinates}
    about |= {"extra": dict(cell.extra), "settings": cell.settings, "environment": dict(machine)}
    write_text(folder / DESCRIPTION, json.dumps(about, indent=1))


def has_ended(cell: Cell, directory: Path) -> bool:
    """Whether the cell's run below ``directory`` is over; AnnotError if its folder holds a run with other settings."""
    folder = directory / cell.name
    if not (folder / "summary.json").is_file() or not (folder / DESCRIPTION).is_file():
        return False
    if read_object(folder / DESCRIPTION, f"remove {folder}, and its run is made anew").get("settings") != cell.settings:
        raise AnnotError(f"{folder} holds a run with other settings; remove it, or give another folder.")
    return True


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Make ``directory`` and hold it against other grids; AnnotError if one is running there."""
    directory.mkdir(parents=True, exist_ok=True)
    lock = alone_in(directory, "grid", "wait for it, or give another folder", seconds=0)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _progress(total: int, outcome: Outcome) -> Iterator[Callable[[Job, bool], None]]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=3600)
    task = bar.add_task(str(outcome), total=total)

    def ended(job: Job, good: bool) -> None:
        if good:
            outcome.done.append(job.name)
        else:
            lines = (job.folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
            outcome.failed[job.name] = "\n".join(lines[-TAIL:])
        bar.update(task, advance=1, description=str(outcome))
        if not good or not console.is_terminal:
            console.print(f"{'done' if good else 'FAILED'} {job.name} ({outcome})", highlight=False, soft_wrap=True)

    with bar:
        yield ended
