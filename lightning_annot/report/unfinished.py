"""The items that a run left unfinished, for experts: riskiest first, with the reason why each is there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

COLUMNS = ("task", "label", "confidence", "risk", "n_annotations", "reason")

WAITS = "waits for an answer"
CAPPED = "asked as often as allowed"
NOBODY = "nobody is left to ask"
EXPERT = "an expert is cheaper"
NEVER = "never asked"
ENDED = "the run ended first"
GOES_ON = "the run has not ended"


def unfinished_items(
    labels: pd.DataFrame, questions: pd.DataFrame, answers: pd.DataFrame, summary: dict[str, Any]
) -> pd.DataFrame:
    """``COLUMNS`` of the unfinished items, by falling risk: what an expert's label gains.

    ``labels``: a run's ``labels.csv``. ``questions`` (open ones alone) and ``answers``: ordinary ones of its log, with the
    column ``item``. ``summary``: its ``summary.json``, with ``cap``, ``stop_reason`` and ``leftover``, or empty while the run
    goes on. Of several reasons the first is told, in the order of ``conditions`` below.
    """
    left = labels[labels["status"] == "unfinished"].sort_values("risk", ascending=False, kind="stable")
    task, leftover = left["task"], summary.get("leftover", {})
    n_asked = task.map(answers["item"].value_counts()).fillna(0).to_numpy(np.int64)
    conditions = {
        WAITS: task.isin(questions["item"]),
        CAPPED: n_asked >= (summary.get("cap") or np.inf),
        NOBODY: task.isin(leftover.get("nobody", [])),
        EXPERT: task.isin(leftover.get("expert", [])),
        NEVER: n_asked == 0,
    }
    ended = f"{ENDED}: {summary['stop_reason']}" if "stop_reason" in summary else GOES_ON
    reason = np.select([np.asarray(where, dtype=bool) for where in conditions.values()], list(conditions), ended)
    return left.assign(reason=reason)[list(COLUMNS)]
