"""What the owner takes away: every format that is one file, and the run's own tables and pages."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.files import unwritable
from lightning_annot.serve.overview import Confusions
from lightning_annot.types import AnnotError

CSV, JSON, HTML = "text/csv", "application/json", "text/html"


@dataclass(frozen=True)
class Export:
    """``about``: what it is. ``source``: a format of ``lightning-annot export``, or the file of the run's folder itself."""

    about: str
    file: str
    media_type: str
    format: str | None = None


EXPORTS = {
    "crowd-kit": Export("answers: task, worker, label, seconds", "crowd-kit.csv", CSV, "crowd-kit"),
    "cleanlab": Export("answers: task, annotator, label", "cleanlab.csv", CSV, "cleanlab"),
    "cleanlab-wide": Export("answers: a row an image, a column a worker", "cleanlab-wide.csv", CSV, "cleanlab-wide"),
    "label-studio": Export("answers and labels for Label Studio", "label-studio.json", JSON, "label-studio"),
    "lean": Export("answers for Lean crowdsourcing", "lean.json", JSON, "lean"),
    "mturk-input": Export("open questions for Mechanical Turk", "mturk-input.csv", CSV, "mturk-input"),
    "labels": Export("labels of all images", "labels.csv", CSV, "labels-csv"),
    "parquet": Export("labels with the most probable classes", "labels.parquet", "application/vnd.apache.parquet", "parquet"),
    "group-workers": Export("confusions by gold answers, for simulated workers", "study.json", JSON),
    "rounds": Export("a row a round", "rounds.csv", CSV),
    "workers": Export("who answered, and how well", "workers.csv", CSV),
    "scorecards": Export("how each worker does, as a table", "scorecards.csv", CSV),
    "scorecards-page": Export("how each worker does, for people", "scorecards.html", HTML),
    "report": Export("the run in pictures", "report.html", HTML),
}


def available(directory: Path, study: bool, gold: bool, asked: bool) -> dict[str, Export]:
    """Those that can be had now: of a study the counts alone, and of a run whose first round has not ended answers alone.

    ``gold``: whether there are gold answers; ``asked``: whether ordinary questions are open.
    """
    if study:
        return {name: EXPORTS[name] for name in ("group-workers",) if gold}
    without = set() if gold else {"group-workers"}
    without |= set() if asked else {"mturk-input"}
    if not (directory / "labels.csv").is_file():
        without |= {"labels", "label-studio", "report", "group-workers"}
    if not (directory / "posterior.npz").is_file():
        without |= {"parquet", "scorecards", "scorecards-page"}
    without |= {name for name in ("rounds", "workers") if not (directory / EXPORTS[name].file).is_file()}
    return {name: export for name, export in EXPORTS.items() if name not in without}


def export(name: str, directory: Path, log: AnnotationLog, confusions: Callable[[], Confusions]) -> bytes:
    """The file; raises AnnotError where there is nothing to write."""
    try:
        with tempfile.TemporaryDirectory() as scratch:
            return _export(name, Path(scratch), directory, log, confusions)
    except OSError as error:
        raise AnnotError(unwritable(EXPORTS[name].file, error)) from error


def _export(name: str, scratch: Path, directory: Path, log: AnnotationLog, confusions: Callable[[], Confusions]) -> bytes:
    chosen = EXPORTS[name]
    path = scratch / chosen.file
    if chosen.format is not None:
        from lightning_annot.exchange.formats import find
        from lightning_annot.exchange.outputs import Outgoing

        find(chosen.format, path, "write")(path, Outgoing(directory, log))
    elif name.startswith("scorecards"):
        from lightning_annot.report.scorecard_page import write_scorecards

        write_scorecards(directory, log.answers())
        path = directory / chosen.file
    elif name == "report":
        from lightning_annot.report.page import write_report

        path = write_report(directory)
    elif name == "group-workers":
        from lightning_annot.exchange.confusions import write_group_workers

        found = confusions()
        write_group_workers(path, list(found.names), list(found.names.values()), {"0": found.counts}, {"0": found.workers})
    elif (path := directory / chosen.file).is_file():
        pass
    else:
        raise AnnotError(f"{chosen.file} is not there yet")
    return path.read_bytes()
