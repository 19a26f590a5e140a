"""Tables and sentences for a page of results: numbers over seeds as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from lightning_annot.experiments.curves import LEVELS, Run, figures_of

NOTHING = "–"
_COLUMNS = {
    **{f"to_{100 * level:.0f}": f"to {level:.0%}" for level in LEVELS},
    "annotations_per_item": "answers at the end",
    "accuracy": "accuracy at the end, %",
    "finished_fraction": "finished, %",
    "finished_precision": "right among finished, %",
    "ece": "ECE",
}
_PERCENT = ("accuracy", "finished_fraction", "finished_precision")


@dataclass
class Page:
    """Markdown that grows; pictures are named from the page's folder."""

    lines: list[str] = field(default_factory=list)

    def add(self, *text: str) -> None:
        """Paragraphs; empty ones are left out."""
        for paragraph in text:
            if paragraph:
                self.lines += [paragraph, ""]

    def picture(self, title: str, path: Path, folder: Path) -> None:
        """A picture below ``folder``, the page's own."""
        self.add(f"![{title}]({path.relative_to(folder).as_posix()})")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table; without rows a line says so."""
        if not rows:
            self.add("No run of this table has ended.")
            return
        text = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}", *(f"| {' | '.join(row)} |" for row in rows)]
        self.add("\n".join(text))

    @property
    def text(self) -> str:
        """The whole page."""
        return "\n".join(self.lines).rstrip() + "\n"


def mean_sd(values: Sequence[float], digits: int, scale: float = 1.0) -> str:
    """``93.1 ± 0.2`` over the values that are there; one value stands alone."""
    known = scale * np.asarray([value for value in values if not math.isnan(value)])
    if not len(known):
        return NOTHING
    mean = f"{known.mean():.{digits}f}"
    return mean if len(known) == 1 else f"{mean} ± {known.std(ddof=1):.{digits}f}"


def reached(values: Sequence[float]) -> str:
    """Answers to a level; how many of the runs reached it, where not all did."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "not reached"
    part = "" if len(known) == len(values) else f" ({len(known)} of {len(values)})"
    return mean_sd(known, 2) + part


def run_table(page: Page, lines: Mapping[str, Sequence[Run]], first: str, paid: bool = False) -> None:
    """A row a line: answers to each level, the end, and the number of seeds; ``paid`` adds what gold questions cost."""
    header = [first, *_COLUMNS.values(), *(["paid at the end"] if paid else []), "seeds"]
    rows = []
    for label, runs in lines.items():
        table = pd.DataFrame([figures_of(run) for run in runs])
        row = [label]
        for name in _COLUMNS:
            values = list(table[name])
            if name.startswith("to_"):
                row.append(reached(values))
            elif name in _PERCENT:
                row.append(mean_sd(values, 1, 100))
            else:
                row.append(mean_sd(values, 3 if name == "ece" else 2))
        row += [mean_sd(list(table["paid_per_item"]), 2)] if paid else []
        rows.append([*row, str(len(runs))])
    page.table(header, rows)


def difference(first: str, a: Sequence[float], second: str, b: Sequence[float]) -> str:
    """Which of two shares is higher, and whether by more than the seeds differ."""
    a, b = [v for v in a if not math.isnan(v)], [v for v in b if not math.isnan(v)]
    if not a or not b:
        return f"{first} and {second} cannot be compared: a value is missing."
    gap = 100 * (np.mean(a) - np.mean(b))
    relation = "as high as" if abs(gap) < 0.05 else f"{abs(gap):.1f} points {'above' if gap > 0 else 'below'}"
    text = f"{first} is {relation} {second} ({mean_sd(a, 1, 100)} against {mean_sd(b, 1, 100)} %)"
    return text + (", which is within the spread of the seeds." if 0.05 <= abs(gap) <= 100 * _spread(a, b) else ".")


def ordering(names: Sequence[str], values: Sequence[Sequence[float]], strict: Sequence[bool]) -> str:
    """Whether means rise along ``names``; ``strict[i]``: step i must rise, else it may stay within .1 points."""
    means = [100 * float(np.mean(v)) for v in values]
    broken = []
    for i, must_rise in enumerate(strict):
        gap = means[i + 1] - means[i]
        if not (gap > 0 if must_rise else gap >= -0.1):
            broken.append(f"{names[i + 1]} ({means[i + 1]:.1f} %) is not above {names[i]} ({means[i]:.1f} %)")
    shown = ", ".join(f"{name} {mean:.1f}" for name, mean in zip(names, means, strict=True))
    return f"holds ({shown} %)." if not broken else f"does not hold: {'; '.join(broken)}."


def trend(values: Sequence[Sequence[float]]) -> str:
    """``rises``, ``falls``, or that it does neither, judged by the means in order."""
    steps = np.diff([np.mean([v for v in some if not math.isnan(v)] or [math.nan]) for some in values])
    if not np.isfinite(steps).all() or not len(steps):
        return "is not known everywhere"
    if (steps == 0).all():
        return "does not change"
    return "rises" if (steps > 0).all() else "falls" if (steps < 0).all() else "neither rises nor falls throughout"


def from_to(name: str, lines: Mapping[str, Sequence[Run]], column: str, digits: int, scale: float = 1.0, unit: str = "") -> str:
    """``NAME falls: .. with the first line, .. with the last``, and whether that is more than the seeds differ."""
    values = {label: [figures_of(run)[column] for run in runs] for label, runs in lines.items()}
    labels = list(values)
    first, last = (mean_sd(values[label], digits, scale) + unit for label in (labels[0], labels[-1]))
    ends = [[v for v in values[label] if not math.isnan(v)] for label in (labels[0], labels[-1])]
    small = all(ends) and 0 < abs(np.mean(ends[0]) - np.mean(ends[1])) <= _spread(*ends)
    note = ", which is within the spread of the seeds" if small else ""
    return f"{name} {trend(list(values.values()))}: {first} with {labels[0]}, {last} with {labels[-1]}{note}."


def best(lines: Mapping[str, Sequence[Run]], column: str = "accuracy") -> str:
    """The line with the highest mean at the end, against the one with the lowest."""
    values = {label: [figures_of(run)[column] for run in runs] for label, runs in lines.items()}
    means = {label: float(np.mean(v)) for label, v in values.items() if not np.isnan(v).all()}
    if len(means) < 2:
        return ""
    top, low = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    if means[top] == means[low]:
        return f"At the end all are equally high ({mean_sd(values[top], 1, 100)} %)."
    return "At the end " + difference(top, values[top], low, values[low])


def _spread(a: Sequence[float], b: Sequence[float]) -> float:
    return max((float(np.std(v, ddof=1)) for v in (a, b) if len(v) > 1), default=0.0)
