"""The tables of an economy benchmark: means, 95% confidence intervals over seeds, and distances from the oracle bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t as student

from lightning_annot.experiments.economy import FIGURES, REACHED, Entry
from lightning_annot.experiments.page import NOTHING, Page
from lightning_annot.report.reading import read_summary

PERCENT = ("end_accuracy", "finished_fraction", "finished_precision", "interval_coverage")
_THREE_DIGITS = ("ece", "ece_max", "claim_gap_max", "f1", "end_annotations", *REACHED)
_NAMES = {
    **{name: f"to {name[2:]}%" for name in REACHED},
    "end_annotations": "answers at the end",
    "end_accuracy": "accuracy at the end, %",
    "finished_fraction": "finished, %",
    "finished_precision": "right among finished, %",
    "ece": "ECE",
    "ece_max": "largest ECE",
    "claim_gap_max": "largest claim gap",
    "interval_coverage": "workers' intervals that hold, %",
    "f1": "F1",
}


def economy_page(table: pd.DataFrame, prototypes: Mapping[str, str]) -> str:
    """Markdown of all rows: two tables a setting, the figures, and ``to*`` over the oracle's of the same seed.

    ``prototypes``: what is known of a setting's prototypes, in words.
    """
    page = Page()
    for setting, rows in table.groupby("setting", sort=False):
        page.add(f"**{setting}**", prototypes.get(str(setting), ""))
        groups = {str(method): some for method, some in rows.groupby("method", sort=False)}
        page.table(
            ["answers an image", *(_NAMES[name] for name in FIGURES), "worst seed, %", "seeds"],
            [
                [method, *(_cell(name, some[name]) for name in FIGURES), _worst(some["end_accuracy"]), str(len(some))]
                for method, some in groups.items()
            ],
        )
        if "oracle" in groups and len(groups) > 1:
            ratios = {method: paired_ratios(some, groups["oracle"]) for method, some in groups.items() if method != "oracle"}
            page.table(
                ["times the oracle's answers", *(_NAMES[name] for name in REACHED), "seeds in common"],
                [[m, *(mean_ci(found[name], 2) for name in REACHED), str(len(found))] for m, found in ratios.items()],
            )
    return page.text


def mean_ci(values: Sequence[float] | pd.Series, digits: int, scale: float = 1.0) -> str:
    """``0.83 ± 0.02``: mean and half the 95% confidence interval over seeds (Student's t); one value stands alone.

    Where some of the ``values`` are missing, it is said of how many the mean is.
    """
    given = scale * np.asarray(values, dtype=float)
    known = given[np.isfinite(given)]
    if not len(known):
        return NOTHING
    text = f"{known.mean():.{digits}f}"
    if len(known) > 1:
        half = student.ppf(0.975, len(known) - 1) * known.std(ddof=1) / np.sqrt(len(known))
        text += f" ± {half:.{digits}f}"
    return text if len(known) == len(given) else f"{text} ({len(known)} of {len(given)} seeds)"


def paired_ratios(rows: pd.DataFrame, oracle: pd.DataFrame) -> pd.DataFrame:
    """``to*`` of ``rows`` over those of ``oracle`` with the same seed, a row a seed in common; nan where either has none."""
    both = rows.merge(oracle, on="seed", suffixes=("", "_oracle"))
    found = pd.DataFrame({name: both[name] / both[f"{name}_oracle"] for name in REACHED})
    return found.where(np.isfinite(found))  # an oracle that is there without any answer


def prototypes_of(entries: Sequence[Entry], runs: Path) -> dict[str, str]:
    """How many prototypes each setting's runs have beside the items that are asked about, in words."""
    found: dict[str, dict[str, None]] = {}
    for entry in entries:
        path = runs / entry.cell.name / "summary.json"
        if path.is_file():
            summary = read_summary(path.parent)
            words = f"{summary['prototypes']:,} prototypes, which no figure counts, and {summary['n_items']:,} other items."
            found.setdefault(entry.setting, {})[words] = None
    return {setting: " ".join(words) for setting, words in found.items()}


def _cell(name: str, values: pd.Series) -> str:
    digits = 1 if name in PERCENT else 3 if name in _THREE_DIGITS else 2
    return mean_ci(values, digits, 100 if name in PERCENT else 1)


def _worst(accuracy: pd.Series) -> str:
    """Lowest accuracy of several seeds, in percent."""
    return f"{100 * accuracy.min():.1f}" if len(accuracy) > 1 and accuracy.notna().any() else NOTHING
