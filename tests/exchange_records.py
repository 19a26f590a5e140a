"""Records from plain rows and back, for tests of formats."""

from __future__ import annotations

from typing import Any

import pandas as pd

from lightning_annot.exchange.records import COLUMNS, Records


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
