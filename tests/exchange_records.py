"""Files, records from plain rows and back, for tests of formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from hypothesis import HealthCheck, settings

from lightning_annot.exchange.records import COLUMNS, Reading, Records

PLAIN = Reading()
ROUND = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
Read = Callable[[Path, Reading], Records]

TEN_H = "annotator_id,trial_index,is_attn_check,true_category,chosen_category,{index},reaction_time,time_elapsed\n"
"""The header of CIFAR-10H; ``index`` is what the image's number is called."""


def saved(folder: Path, content: Any, name: str = "answers.csv") -> Path:
    """A file of text, or of anything else as JSON."""
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def rows(found: Records) -> list[tuple[Any, ...]]:
    """Task, worker, label, seconds, kind of each answer; None for no label and no time."""
    table = found.answers[list(COLUMNS[:5])].astype(object)
    assert found.answers["skip"].tolist() == found.answers["label"].isna().tolist()
    return [tuple(None if pd.isna(v) else v for v in row) for row in table.to_numpy()]


def made(cells: list[Any], truth: dict[str, str] | None = None, classes: tuple[str, ...] = ()) -> Records:
    """Records of (task, worker, label or None, seconds or None[, kind])."""
    frame = pd.DataFrame([(*cell, "annotation")[:5] for cell in cells], columns=list(COLUMNS[:5]))
    frame["seconds"] = frame["seconds"].astype("float64")
    frame["label"] = frame["label"].astype(object).where(frame["label"].notna(), None)
    return Records(frame.assign(skip=frame["label"].isna()), truth or {}, classes)
