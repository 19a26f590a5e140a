"""Other libraries on the same answers, from a table that ``scripts/compare_peers.py`` leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from lightning_annot.experiments.figures import draw_points, save_png
from lightning_annot.experiments.page import Page, difference, mean_sd
from lightning_annot.types import AnnotError

_SCORES = ("accuracy", "finished_fraction", "finished_precision")
COLUMNS = ("setting", "method", "answers_per_item", "seed", *_SCORES, "ece", "seconds")
_HEADER = ("method", "answers an image", "accuracy, %", "finished, %", "right among finished, %", "ECE", "seconds", "seeds")


def read_peers(path: Path) -> pd.DataFrame:
    """The table, checked."""
    table = pd.read_csv(path, dtype={"setting": str, "method": str})
    if missing := [name for name in COLUMNS if name not in table]:
        raise AnnotError(f"{path} has no column {', '.join(missing)}; it must have {', '.join(COLUMNS)}.")
    return table


def write_peers(page: Page, table: pd.DataFrame, folder: Path, pictures: Path) -> None:
    """A table a setting, the best method against the next at each number of answers, and a figure."""
    for number, (setting, rows) in enumerate(table.groupby("setting", sort=False)):
        page.add(f"**{setting}**")
        shown = []
        for (method, answers), some in rows.groupby(["method", "answers_per_item"], sort=False):
            scores = [mean_sd(list(some[name]), 1, 100) for name in _SCORES]
            ece, seconds = mean_sd(list(some["ece"]), 3), mean_sd(list(some["seconds"]), 1)
            shown.append([str(method), f"{answers:g}", *scores, ece, seconds, str(some["seed"].nunique())])
        page.table(_HEADER, shown)
        for answers, some in rows.groupby("answers_per_item"):
            page.add(_best(some, float(answers)))
        lines = {str(method): some for method, some in rows.groupby("method", sort=False)}
        figure = draw_points(lines, "answers_per_item", "accuracy", ("answers an image", "labels correct"))
        page.picture(f"Peers, {setting}", save_png(figure, pictures / f"peers_{number + 1}.png"), folder)


def _best(rows: pd.DataFrame, answers: float) -> str:
    means = rows.groupby("method")["accuracy"].mean().sort_values(ascending=False)
    if len(means) < 2 or not np.isfinite(means.iloc[:2]).all():
        return ""
    first, second = (str(name) for name in means.index[:2])
    values = [list(rows.loc[rows["method"] == name, "accuracy"]) for name in (first, second)]
    return f"At {answers:g} answers an image: " + difference(first, values[0], second, values[1])
