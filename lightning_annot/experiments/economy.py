"""Answers per image at equal label accuracy: any set of methods on the same images, people and seeds, in one table."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pandas as pd
from filelock import FileLock

from lightning_annot import presets
from lightning_annot.annotations.formats import write_table
from lightning_annot.experiments.bound import Who, bound_rounds, oracle_log_probability, recorded_source, simulated_source
from lightning_annot.experiments.claims import CLAIMS, claims_of
from lightning_annot.experiments.curves import LEVELS, figures_of, read_run
from lightning_annot.experiments.grid import Cell, check, read_settings
from lightning_annot.experiments.runner import (
    Job,
    Outcome,
    alone,
    check_jobs,
    has_ended,
    job_of,
    run_cells,
    settings_in,
    words_of,
)
from lightning_annot.files import write_text
from lightning_annot.locks import told_if_slow
from lightning_annot.types import AnnotError, Task

KEY = ("setting", "method", "seed")
REACHED = {f"to{100 * level:.0f}": f"to_{100 * level:.0f}" for level in LEVELS}
FIGURES = {
    **REACHED,
    "end_annotations": "annotations_per_item",
    "end_accuracy": "accuracy",
    **{name: name for name in ("finished_fraction", "finished_precision", "ece")},
    **{name: name for name in CLAIMS},
}
"""Column -> figure of a run. ``to*`` is the first round at the level or above, without interpolation; empty if none is."""

COLUMNS = (*KEY, *FIGURES)
ORACLES: dict[str, Who] = {"oracle": "random", "oracle-best-worker": "best"}
_TAKEN = ("config", "method", "faithful", "seed_everything", "annotation.output_dir", "annotation.workers.group")


@dataclass(frozen=True)
class Method:
    """A row's name, the preset it is, if any, and the settings that it changes."""

    name: str
    preset: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """Images and people: a configuration, the group of simulated workers (None: as the configuration has it), and settings."""

    name: str
    config: str
    group: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """A row of the table, and the run it is read from."""

    setting: str
    method: str
    seed: int
    cell: Cell


def read_method(text: str) -> Method:
    """``ours``, another preset, ``oracle``, ``oracle-best-worker``, or ``NAME:key=value,key=value``, a change of ours."""
    name, colon, changes = text.partition(":")
    known = (*presets.METHODS, *ORACLES)
    if not colon:
        if name not in known:
            raise AnnotError(
                f"method {name!r} given; allowed are {', '.join(known)}, and NAME:key=value,key=value for a change of ours."
            )
        return Method(name, None if name == "ours" else name)
    if name in known or not re.fullmatch(r"[\w.+-]+", name):
        raise AnnotError(f"method {text!r} given; its name must be a word that is none of {', '.join(known)}.")
    pairs = split_outside_brackets(changes)
    if not all(re.fullmatch(r"[A-Za-z_][\w.]*=.+", pair, flags=re.S) for pair in pairs):
        raise AnnotError(f"method {text!r} given; after the name come settings, such as {name}:model.lr=0.1,data.folds=3.")
    return Method(name, None, read_settings(pairs))


def split_outside_brackets(text: str) -> list[str]:
    """Parts between commas; those within [], {} and () part nothing."""
    parts, depth = [""], 0
    for sign in text:
        depth += (sign in "[{(") - (sign in "]})")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts]


def plan(settings: Sequence[Setting], methods: Sequence[Method], seeds: Sequence[int]) -> list[Entry]:
    """All rows, checked; AnnotError for an empty list and for two methods of one name."""
    for what, values in (("setting", settings), ("method", methods), ("seed", seeds)):
        if not values:
            raise AnnotError(f"no {what} given; give one or more.")
    names = [method.name for method in methods]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise AnnotError(f"method {', '.join(twice)} given twice; each row needs a name of its own.")
    entries = []
    for setting in settings:
        for method in methods:
            for seed in seeds:
                entries.append(Entry(setting.name, method.name, seed, _cell(setting, method, seed)))
    return entries


def run_economy(entries: Sequence[Entry], out: Path, runs: Path, root: Path, jobs: int) -> Outcome:
    """Run below ``runs`` what has not ended, ``jobs`` at a time, and write each row to ``out`` as soon as its run ends.

    Rows of ``out`` from other settings, methods and seeds stay. In the end those of ``entries`` are in their order.
    """
    check_jobs(jobs)
    read_table(out)  # a file of another kind is refused before anything runs
    out, runs = out.resolve(), runs.resolve()
    by_run: dict[str, list[Entry]] = {}
    for entry in entries:
        by_run.setdefault(entry.cell.name, []).append(entry)
    with alone(runs):
        note_rows(runs, entries, out, root)
        cells = [same[0].cell for same in by_run.values()]
        outcome = run_cells(cells, runs, root, jobs, lambda cell, machine: _job(by_run[cell.name], runs, machine, out, root))
        note_rows(runs, entries, out, root)
    return outcome


def read_table(out: Path) -> pd.DataFrame:
    """Read the rows so far, none if there is no file; columns that an older file lacks are empty."""
    if not out.is_file():
        return pd.DataFrame(columns=list(COLUMNS))
    table = pd.read_csv(out, dtype={"setting": str, "method": str})
    if tuple(table) == COLUMNS[: -len(CLAIMS)]:  # a file from before the claims were compared with the truth
        table = table.reindex(columns=list(COLUMNS))
    if tuple(table) != COLUMNS:
        raise AnnotError(f"{out} has the columns {list(table)}, not {', '.join(COLUMNS)}; give another file.")
    return table


def note_rows(runs: Path, entries: Sequence[Entry], out: Path, root: Path) -> None:
    """Put the rows of ended runs into ``out``, in place of those with the same setting, method and seed.

    Relative paths in the settings of a run start at ``root``.
    """
    rows = []
    for entry in entries:
        if has_ended(entry.cell, runs):
            run = read_run(runs / entry.cell.name)
            figures = figures_of(run) | claims_of(run, root)
            rows.append([entry.setting, entry.method, entry.seed, *(figures[name] for name in FIGURES.values())])
    if not rows:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with told_if_slow(out):
        lock = FileLock(out.with_name(f".{out.name}.lock")).acquire()
    with lock:
        new, old = pd.DataFrame(rows, columns=list(COLUMNS)).round(6), read_table(out)
        table = pd.concat([old, new]) if len(old) else new
        write_table(out, table.drop_duplicates(list(KEY), keep="last"))


def run_bound(folder: Path, cell: Cell) -> None:
    """Compute the bound on the items, prototypes and workers that the same settings give a run, as files of a run."""
    from lightning_annot.cli import build
    from lightning_annot.workers.recorded import RecordedWorkers
    from lightning_annot.workers.simulated import SimulatedWorkers

    settings = settings_in(cell, folder)
    who = ORACLES[settings.pop("method")]
    command = build(words_of(settings))
    data, around = command.datamodule, command.annotation_round
    data.setup("fit")
    table, workers = data.table, around.workers
    if table.truth is None:
        raise AnnotError("the bound is made of the truth, and this data has none; give --labels.")
    workers.bind(Task(table.ids, table.classes, data.seed, str(folder), None, data.loaded.labels))
    truth = table.truth
    if isinstance(workers, RecordedWorkers):
        item, worker, label = workers.recorded()
        code = {name: k for k, name in enumerate(table.classes)}
        codes = pd.Series(label).map(code).to_numpy(dtype="int64")
        source = recorded_source(item, worker, codes, truth.numpy(), len(table.classes))
        who = "next" if who == "random" else who
    elif isinstance(workers, SimulatedWorkers):
        source = simulated_source(workers.confusions(table.classes, data.seed), len(table), workers.answer)
    else:
        raise AnnotError(f"the bound needs simulated or recorded workers; {type(workers).__name__} given.")
    log_prior = oracle_log_probability(data.projected()[0][: len(table)], truth, data.seed)
    sampling = around.sampling
    rounds = bound_rounds(
        log_prior, truth, ~table.is_prototype, source, who,
        threshold=around.threshold, cap=sampling.most, per_round=sampling.per_round, seed=data.seed,
    )  # fmt: skip
    write_table(folder / "rounds.csv", rounds)
    n_prototypes = int(table.is_prototype.sum())
    summary = {"stop_reason": "no item is open", "n_items": len(table) - n_prototypes, "prototypes": n_prototypes}
    write_text(folder / "summary.json", json.dumps({**summary, "classes": list(table.classes)}, indent=1))


def _cell(setting: Setting, method: Method, seed: int) -> Cell:
    coordinates = {"method": method.preset, "group": setting.group, "seed": seed}
    given = {name: value for name, value in coordinates.items() if value is not None}
    oracle = method.preset in ORACLES
    if taken := sorted(set(_TAKEN) & {*setting.settings, *(set(method.settings) - {"method", "faithful"})}):
        raise AnnotError(
            f"{taken[0]} given as a setting; it is what --methods, --seeds, --runs and the settings' names are for."
        )
    cell = Cell(setting.config, given, {**setting.settings, **method.settings})
    check(Cell(setting.config, {name: value for name, value in given.items() if name != "method" or not oracle}, cell.extra))
    return cell


def _job(same: Sequence[Entry], runs: Path, machine: Mapping[str, str], out: Path, root: Path) -> Job:
    """The run of a cell, or its bound, and then the rows that are read from it."""
    cell = same[0].cell
    bound = cell.coordinates.get("method") in ORACLES
    job = job_of(cell, runs, machine, then=partial(_finish, entries=same, out=out, root=root, bound=bound))
    return replace(job, arguments=()) if bound else job


def _finish(folder: Path, entries: Sequence[Entry], out: Path, root: Path, bound: bool) -> None:
    if bound:
        run_bound(folder, entries[0].cell)
    note_rows(folder.parent, entries, out, root)
