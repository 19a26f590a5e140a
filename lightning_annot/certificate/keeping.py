"""Where the record of claims is kept: in the annotation log, as a fact, and in ``certificate.json`` for whoever reads it.

The log has every state of every stage, appended before questions are asked and before a look is shown. If
``certificate.json`` is lost, changed or put back from a backup, the record is still complete. A log of an older version has
no stages: there each earlier draw, and each claim of a ``certificate.json`` beside it, counts as a stage whose share is spent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.annotations.plans import add_plan, plans
from lightning_annot.certificate.audit import draws
from lightning_annot.certificate.record import Record, Stage
from lightning_annot.files import write_text
from lightning_annot.stored import read_object, reading
from lightning_annot.types import AnnotError

NAME = "certificate.json"


def read_record(log: AnnotationLog, directory: Path, seed: int | None = None) -> Record:
    """Return the record of a run.

    Args:
        log: The run's annotation log.
        directory: The run's folder.
        seed: Seed of the random orders; only the first draw may set it.

    Raises:
        AnnotError: Another seed was set before, or a file is damaged.
    """
    record: Record | None = None
    for text in plans(log):
        record = _with_row(record, log.name, text)
    if record is None:
        record = Record(seed or 0, lost=max(draws(log), _older_claims(directory)))
    elif seed is not None and seed != record.seed:
        raise AnnotError(f"--seed {seed} given; this run's audits are drawn by seed {record.seed}. Leave --seed out.")
    return record


def keep_stages(log: AnnotationLog, before: Record, after: Record) -> None:
    """Append to the log what ``after`` has and ``before`` has not."""
    for index, stage in enumerate(after.stages):
        if index >= len(before.stages) or before.stages[index] != stage:
            add_plan(log, json.dumps({"seed": after.seed, "lost": after.lost, "index": index, "stage": asdict(stage)}))


def write_certificate(directory: Path, record: Record) -> None:
    """Replace ``certificate.json`` by the record and the certificate stated last."""
    write_text(directory / NAME, json.dumps(asdict(record), indent=1) + "\n")


def _with_row(record: Record | None, name: str, text: str) -> Record:
    cure = "put back a backup of the log"
    with reading(Path(name), cure):
        row = json.loads(text)
        begun = record or Record(int(row["seed"]), lost=int(row["lost"]))
        return begun.with_stage(int(row["index"]), _stage(row["stage"]))


def _stage(found: Mapping[str, Any]) -> Stage:
    grid = tuple(float(threshold) for threshold in found["grid"])
    looks = tuple((int(n), int(k)) for n, k in found["looks"])
    return Stage(**{**found, "grid": grid, "looks": looks})


def _older_claims(directory: Path) -> int:
    """Claims in the ``certificate.json`` of an older version, whose log knows of no stages."""
    path = directory / NAME
    if not path.is_file():
        return 0
    cure = "take back the file as it was written, or delete it: then each draw so far counts as a stage"
    found = read_object(path, cure)
    with reading(path, cure):
        return int(found["lost"]) + max(len(found["stages"]), len(found.get("claims", ())))
