"""The items that a run left unfinished, for experts: where an answer gains most first, with all that is known of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lightning_annot.annotations.formats import EXPERT_LABEL
from lightning_annot.annotations.schema import EXPERT as SOURCE
from lightning_annot.crowd.priors import EXPERT_ACCURACY

COLUMNS = (
    "task",
    "label",
    "confidence",
    "risk",
    "n_annotations",
    "gain",
    "probable",
    "answers",
    "reason",
    "path",
    EXPERT_LABEL,
)

DOUBT = "an expert has seen it, and doubt remains"
WAITS = "waits for an answer"
CAPPED = "asked as often as allowed"
NOBODY = "nobody is left to ask"
EXPERT = "an expert is cheaper"
NEVER = "never asked"
ENDED = "the run ended first"
GOES_ON = "the run has not ended"


@dataclass(frozen=True)
class Belief:
    """The most probable of ``classes`` (K) for each item: ``top`` (N, T), best first, and their ``probability`` (N, T)."""

    classes: Sequence[str]
    top: np.ndarray
    probability: np.ndarray


def expert_gain(probability: np.ndarray, n_classes: int, accuracy: float = EXPERT_ACCURACY) -> np.ndarray:
    """Expected fall of the error of items (N,) from one answer of an expert, at least 0.

    With p(y) the posterior and c the expert's confusion, right with ``accuracy`` r and otherwise wrong evenly, it is
    sum_z max_y p(y) c[y, z] - max_y p(y). For an answer z the best class is z itself, or, where e max_{y != z} p(y) > r p(z)
    with e = (1 - r) / (K - 1), the best of the others. Where each z would be followed this is r - max_y p(y).
    ``probability`` (N, T) holds the most probable classes, best first; all others share what is left.
    """
    p = np.asarray(probability, dtype=np.float64)
    others = n_classes - p.shape[1]
    rest = np.clip(1.0 - p.sum(1), 0.0, None) / max(1, others)
    best, wrong = p[:, 0], (1.0 - accuracy) / (n_classes - 1)
    second = p[:, 1] if p.shape[1] > 1 else rest
    runner = np.full_like(p, best[:, None])
    runner[:, 0] = np.maximum(second, rest if others else 0.0)
    after = np.maximum(accuracy * p, wrong * runner).sum(1) + others * np.maximum(accuracy * rest, wrong * best)
    gain: np.ndarray = np.clip(after - best, 0.0, None)
    return gain


def unfinished_items(
    labels: pd.DataFrame,
    belief: Belief,
    questions: pd.DataFrame,
    answers: pd.DataFrame,
    summary: dict[str, Any],
    images: Path | None = None,
) -> pd.DataFrame:
    """``COLUMNS`` of the unfinished items, by falling ``expert_gain``, then risk.

    ``labels``: a run's ``labels.csv``, and ``belief`` in the same order. ``questions`` (open ones alone) and ``answers``:
    ordinary ones of its log, with the column ``item``. ``summary``: its ``summary.json``, with ``cap``, ``stop_reason`` and
    ``leftover``, or empty while the run goes on. Of several reasons the first is told, in the order of ``conditions`` below.
    ``images``: their folder; ``path`` is that of the item's file, and empty where there is none.
    """
    row = np.flatnonzero(labels["status"] == "unfinished")
    gain = expert_gain(belief.probability[row], len(belief.classes)).round(6)
    order = np.lexsort((-labels["risk"].to_numpy()[row], -gain))
    row, gain = row[order], gain[order]
    left = labels.iloc[row]
    task, leftover = left["task"], summary.get("leftover", {})
    n_asked = task.map(answers["item"].value_counts()).fillna(0).to_numpy(np.int64)
    seen = answers.loc[answers["source"] == SOURCE, "item"] if "source" in answers else []
    conditions = {
        DOUBT: task.isin(seen),
        WAITS: task.isin(questions["item"]),
        CAPPED: n_asked >= (summary.get("cap") or np.inf),
        NOBODY: task.isin(leftover.get("nobody", [])),
        EXPERT: task.isin(leftover.get("expert", [])),
        NEVER: n_asked == 0,
    }
    ended = f"{ENDED}: {summary['stop_reason']}" if "stop_reason" in summary else GOES_ON
    reason = np.select([np.asarray(where, dtype=bool) for where in conditions.values()], list(conditions), ended)
    probable = _probable(belief, row)
    path = [_path(images, name) for name in task]
    more = {"gain": gain, "probable": probable, "answers": _answers(task, answers), "reason": reason, "path": path}
    return left.assign(**more, **{EXPERT_LABEL: ""})[list(COLUMNS)]


def _path(folder: Path | None, task: str) -> str:
    return str(folder / task) if folder is not None and (folder / task).is_file() else ""


def _probable(belief: Belief, row: np.ndarray) -> list[str]:
    """``cat 0.52; dog 0.31`` of each item."""
    names = np.asarray(belief.classes, dtype=object)[belief.top[row]]
    return [
        "; ".join(f"{name} {value:.2f}" for name, value in zip(*pair, strict=True))
        for pair in zip(names.tolist(), belief.probability[row].tolist(), strict=True)
    ]


def _answers(task: pd.Series, answers: pd.DataFrame) -> list[str]:
    """``anna: cat; ben: skip`` of each item, in the order of the log."""
    if not {"worker", "label"} <= {*answers} or answers.empty:
        return [""] * len(task)
    here = answers[answers["item"].isin(task)]
    said = here["worker"] + ": " + here["label"].where(here["label"].notna(), "skip")
    found: list[str] = task.map(said.groupby(here["item"]).agg("; ".join)).fillna("").tolist()
    return found
