"""Which figures there are: what varies within each, what is drawn, and how its lines are called."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lightning_annot.crowd.skill import PRIORS
from lightning_annot.experiments.curves import ANSWERS, PAID, Run, group_by
from lightning_annot.experiments.grid import AXES, METHODS, SIMULATED, Value
from lightning_annot.sampling.assignment import ASSIGNMENTS

METHOD_NAMES = {
    "majority_vote": "majority vote",
    "online_ds": "online DS",
    "lean": "Lean",
    "improved_lean": "Improved Lean",
    "efficient_annotation": "efficient annotation",
    "mixmatch": "MixMatch",
    "ours": "ours",
}
PRIOR_NAMES = {
    "tiered": "tiered",
    "homogeneous": "none (homogeneous)",
    "class": "A (class)",
    "worker": "B (worker)",
    "class_worker": "A+B (class and worker)",
}
COLUMN_NAMES = {
    "accuracy": "labels correct",
    "finished_precision": "finished labels correct",
    "unfinished": "unfinished",
    "ece": "calibration error (ECE)",
    "top5_accuracy": "true class among the best 5",
    "finished": "finished images",
}
MOST_LINES, MOST_PANELS = 8, 3
_PAPER_PANELS = {"dog": "Dog", "commodity": "Commodity", "vertebrate": "Vertebrate", "insect+fungus": "Insect+Fungus"}
_PAPER_METHODS = {
    "online_ds": "Online DS",
    "improved_lean": "No semi",
    "efficient_annotation": "Pseudolabel",
    "mixmatch": "Mixmatch",
}
_PAPER_STRENGTHS = {10: 10, 30: 30, 240: 10}  # ours to the paper's, which multiplies raw counts of about 24 a row
_PAPER_PRIORS = {"homogeneous": "None", "class": "A", "worker": "B", "class_worker": "A+B"}

Paper = dict[str, dict[str, list[list[float]]]]
"""Figure -> "panel|method" -> [annotations an image, value]."""


@dataclass(frozen=True)
class Spec:
    """A figure: lines differ by ``axes`` and are named by ``label``; panels differ by everything else but the seed.

    ``paper``: column -> figure of the paper; ``paper_line``: name of a run's line there, None where it has none.
    """

    name: str
    title: str
    axes: tuple[str, ...]
    label: Callable[[Run], str]
    columns: tuple[str, ...] = ("accuracy",)
    paper: dict[str, str] = field(default_factory=dict)
    paper_line: Callable[[Run], str | None] = lambda run: None
    wanted: Callable[[Run], bool] = lambda run: True
    along: str = ANSWERS


@dataclass(frozen=True)
class Panel:
    """``lines``: label -> runs that differ by seed alone."""

    title: str
    lines: dict[str, list[Run]]


def method_label(run: Run) -> str:
    """The method's name, as in the paper where it is the paper's; one that reads the simulated workers says so."""
    method = str(run.at("method"))
    notes = [note for note, holds in (("faithful", run.at("faithful")), ("oracle-prior", run.oracle)) if holds]
    return METHOD_NAMES.get(method, method) + (f" ({', '.join(notes)})" if notes else "")


def prior_label(run: Run) -> str:
    """Prior and where it was estimated; a prior that reads the simulated workers is called oracle-prior."""
    prior = str(run.at("prior"))
    source = ", oracle-prior" if run.oracle else f", {run.at('gold')} gold" if run.at("gold") else ""
    return f"{PRIOR_NAMES.get(prior, prior)}{source}"


def assignment_label(run: Run) -> str:
    """How workers are chosen, and the cap if there is one."""
    cap = run.at("worker_cap")
    return f"{run.at('assignment')}" + ("" if cap is None else f", at most {cap} a worker")


def features_label(run: Run) -> str:
    """The bank's file name without folder and ending."""
    return Path(str(run.at("features"))).stem


def _numbered(axis: str, form: str) -> Callable[[Run], str]:
    return lambda run: form.format(run.at(axis))


def _distractors(run: Run) -> str:
    return f"{100 * float(run.at('distractors') or 0):.0f}% distractors"


def _threshold_line(run: Run) -> str:
    return f"C={float(run.at('threshold') or 0):.1f}".replace("0.", ".")


def _prior_line(strength: int) -> Callable[[Run], str | None]:
    return lambda run: _PAPER_PRIORS.get(str(run.at("prior"))) if run.at("strength") == strength else None


def _method_line(names: dict[str, str]) -> Callable[[Run], str | None]:
    return lambda run: names.get(str(run.at("method")))


def _among(*methods: str) -> Callable[[Run], bool]:
    return lambda run: run.at("method") in methods


_METHOD = ("method", "faithful")
_PRIOR = ("oracle", "gold", "prior", "strength", "estimate")
_MAIN = ("accuracy", "finished_precision", "unfinished", "ece")

SPECS = (
    Spec(
        "methods",
        "Methods",
        _METHOD,
        method_label,
        _MAIN,
        {"accuracy": "semi", "finished_precision": "precision", "unfinished": "unfinished"},
        _method_line(_PAPER_METHODS),
    ),
    Spec(
        "threshold",
        "Risk threshold C",
        ("threshold",),
        _numbered("threshold", "C = {}"),
        ("accuracy", "unfinished"),
        {"accuracy": "risk"},
        _threshold_line,
    ),
    Spec(
        "workers",
        "Number of workers",
        ("workers",),
        _numbered("workers", "{} workers"),
        paper={"accuracy": "workers"},
        paper_line=_numbered("workers", "{}"),
    ),
    Spec(
        "per_round",
        "Labels a round",
        ("per_round",),
        _numbered("per_round", "{} a round"),
        paper={"accuracy": "step"},
        paper_line=_numbered("per_round", "{}"),
    ),
    *(
        Spec(
            f"priors_{s}",
            f"Priors of strength {s}",
            _PRIOR,
            prior_label,
            paper={"accuracy": f"prior{_PAPER_STRENGTHS[s]}"},
            paper_line=_prior_line(s),
            wanted=lambda run, s=s: run.at("strength") == s,  # type: ignore[misc]
            along=PAID,
        )
        for s in _PAPER_STRENGTHS
    ),
    Spec(
        "assignment",
        "Task assignment",
        ("assignment", "worker_cap"),
        assignment_label,
        paper={"accuracy": "assign"},
        paper_line=lambda run: None if run.at("worker_cap") else str(run.at("assignment")).capitalize(),
    ),
    Spec(
        "noise",
        "Structured and uniform noise",
        ("noise",),
        _numbered("noise", "{} noise"),
        paper={"accuracy": "noise"},
        paper_line=_numbered("noise", "{}"),
    ),
    Spec("distractors", "Distractors", ("distractors",), _distractors),
    Spec("items", "Choice of images", ("items",), _numbered("items", "{}")),
    Spec("features", "Features", ("features",), features_label),
    Spec(
        "validation",
        "Prototypes as validation, or cross-validation",
        _METHOD,
        lambda run: "prototypes" if run.at("method") == "improved_lean" else "cross-validation",
        ("accuracy", "ece"),
        {"accuracy": "proto", "ece": "proto"},
        _method_line({"lean": "CV3", "improved_lean": "noCV+Clean"}),
        lambda run: _among("lean", "improved_lean")(run) and not run.at("faithful"),
    ),
    Spec(
        "stopping",
        "Early stopping: lines end where the run stopped",
        _METHOD,
        method_label,
        ("finished", "accuracy"),
        wanted=lambda run: _among("efficient_annotation", "improved_lean")(run) and not run.at("faithful"),
    ),
    Spec("top5", "Best five classes", _METHOD, method_label, ("top5_accuracy",)),
)


def panels_of(spec: Spec, runs: Sequence[Run], least_lines: int = 2) -> list[Panel]:
    """The panels that ``runs`` fill with at least ``least_lines`` lines; the first in grid order where there are too many."""

    def context(run: Run) -> tuple[Any, ...]:
        given = tuple((axis, run.given.get(axis)) for axis in AXES if axis not in (*spec.axes, "seed"))
        return run.config, given, tuple(sorted(run.extra.items()))

    found: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        if spec.wanted(run) and any(column in run.rounds and run.rounds[column].notna().any() for column in spec.columns):
            found.setdefault(context(run), []).append(run)
    kept: list[tuple[Run, dict[str, list[Run]]]] = []
    for members in found.values():
        ordered = sorted(members, key=lambda run: tuple(_rank(run.at(axis)) for axis in spec.axes))
        lines = dict(list(group_by(ordered, spec.label).items())[:MOST_LINES])
        if len(lines) >= least_lines:
            kept.append((members[0], lines))
    differ = [axis for axis in AXES if axis not in (*spec.axes, "seed") and len({run.given.get(axis) for run, _ in kept}) > 1]
    return [Panel(_describe(run, differ), lines) for run, lines in kept]


def _describe(run: Run, varying: Sequence[str]) -> str:
    """A panel's title: its people, and what makes it differ from other panels."""
    words = [] if run.config == SIMULATED else [Path(run.config).stem]
    if "group" in run.given:
        words.append(f"{run.given['group']} workers")
    words += [
        f"{axis.replace('_', ' ')} {run.at(axis)}" for axis in varying if axis not in ("group", "features") and run.at(axis)
    ]
    words += [features_label(run) for axis in varying if axis == "features"]
    return ", ".join(words) or "simulated workers"


def read_paper(path: Path) -> Paper:
    """The paper's curves as read from its figures; empty where the file is absent."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def paper_curve(spec: Spec, paper: Paper, run: Run, column: str) -> np.ndarray | None:
    """The paper's line (points, 2) of the same kind as ``run``: same method or value and the same people, other images."""
    panel, line = _PAPER_PANELS.get(str(run.at("group"))), spec.paper_line(run)
    if panel is None or line is None or column not in spec.paper or (run.at("faithful") and spec.name == "methods"):
        return None
    if spec.paper[column] == "proto":
        panel = f"{panel} {'ECE' if column == 'ece' else 'acc'}"
    points = paper.get(spec.paper[column], {}).get(f"{panel}|{line}")
    return None if points is None else np.array(points) * (1, 1 if column == "ece" else 0.01)


def _rank(value: Value) -> tuple[int, float, str]:
    for names in (METHODS, PRIORS, ASSIGNMENTS):
        if value in names:
            return 0, float(names.index(str(value))), ""
    if isinstance(value, bool | int | float):
        return 1, float(value), ""
    return 2, 0.0, str(value or "")
