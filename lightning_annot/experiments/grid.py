"""Grids of runs: coordinates on axes, the settings they stand for, and which of them cannot be."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from lightning_annot import presets
from lightning_annot.crowd.skill import PRIORS
from lightning_annot.sampling.assignment import ASSIGNMENTS
from lightning_annot.sampling.items import ITEM_RULES
from lightning_annot.types import AnnotError
from lightning_annot.workers.amt import GROUP_NAMES

METHODS = tuple(presets.METHODS)
RELEASED = tuple(presets.RELEASED_BY_METHOD)
WORKER_PRIORS = ("worker", "class_worker")
ORACLE_FILE = "simulated_workers.npz"  # a simulated run leaves it in its own folder before round 0
SIMULATED = "configs/simulated.yaml"
Value = str | int | float | bool | None
"""A coordinate; None leaves the setting as the method or the configuration has it."""

# These need not be said; left out, equal runs have equal settings.
DEFAULTS: dict[str, Value] = {"method": "ours", "faithful": False, "oracle": False}


def _truth_value(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError
    return text.lower() == "true"


@dataclass(frozen=True)
class Axis:
    """``key``: the setting. ``read``: text to value. ``choices`` or ``least``: what is allowed, where it is known."""

    key: str
    read: Callable[[str], Any] = str
    choices: tuple[str, ...] = ()
    least: float | None = None
    help: str = ""


AXES = {
    "method": Axis("method", choices=METHODS, help="preset of settings"),
    "faithful": Axis("faithful", _truth_value, help="true: as the released code has it"),
    "group": Axis("annotation.workers.group", choices=GROUP_NAMES, help="whose confusions are simulated"),
    "threshold": Axis("annotation.threshold", float, least=0, help="risk threshold C"),
    "workers": Axis("annotation.workers.n_workers", int, least=1, help="number of workers"),
    "per_round": Axis("annotation.sampling.per_round", int, least=1, help="labels a round"),
    "prior": Axis("annotation.crowd.prior", choices=PRIORS, help="prior of the workers' confusions"),
    "strength": Axis("annotation.crowd.strength", float, least=0, help="pseudo-counts of the prior"),
    "estimate": Axis("annotation.crowd.estimate", choices=("fixed", "em", "gold"), help="where the prior's accuracy is from"),
    "oracle": Axis("annotation.crowd.oracle", _truth_value, help="true: the prior reads the simulated workers"),
    "gold": Axis("annotation.gold", int, least=0, help="gold questions a worker"),
    "assignment": Axis("annotation.sampling.workers", choices=ASSIGNMENTS, help="who is asked"),
    "worker_cap": Axis("annotation.sampling.worker_cap", int, least=1, help="most answers a worker"),
    "hit_size": Axis("annotation.sampling.hit_size", int, least=1, help="images that go to one worker together"),
    "noise": Axis("annotation.workers.noise", choices=("structured", "uniform"), help="form of the workers' mistakes"),
    "distractors": Axis("data.distractors", float, least=0, help="images of no class, as a share of the others"),
    "classes": Axis("data.classes", help="classes, with commas between"),
    "items": Axis("annotation.sampling.items", choices=ITEM_RULES, help="what is asked"),
    "features": Axis("data.features", help="feature bank"),
    "seed": Axis("seed_everything", int, least=0, help="seed; take seeds far apart"),
}


@dataclass(frozen=True)
class Cell:
    """One run of a grid: a configuration, its coordinates (None and defaults left out), and settings passed on as they are."""

    config: str
    coordinates: Mapping[str, Value]
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, str]:
        """Dotted settings as text, without output folder; two cells with equal settings are the same run."""
        found = {AXES[axis].key: _text(axis, value) for axis, value in self.coordinates.items()}
        return {"config": self.config, **found, **self.extra}

    @property
    def name(self) -> str:
        """Folder of the run: readable, and unique by a digest of the settings. Nothing ever parses it."""
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:8]
        words = [
            f"{axis}_{_text(axis, value)}" for axis, value in self.coordinates.items() if axis not in ("features", "classes")
        ]
        return re.sub(r"[^A-Za-z0-9_.+-]", "", "-".join(words))[:100] + f"-{digest}"


def expand(axes: Mapping[str, Sequence[Value]], config: str = SIMULATED, extra: Mapping[str, str] | None = None) -> list[Cell]:
    """All combinations of the axes' values, checked; AnnotError names the first thing that cannot be."""
    if unknown := [name for name in axes if name not in AXES]:
        raise AnnotError(f"unknown axis {', '.join(unknown)}; allowed are {', '.join(AXES)}.")
    if empty := [name for name, values in axes.items() if not values]:
        raise AnnotError(f"the grid is empty: {', '.join(empty)} has no value. Give one or more, or leave the axis out.")
    if not axes:
        raise AnnotError(f"the grid is empty; give one or more values of {', '.join(AXES)}.")
    cells = [
        Cell(
            config,
            {name: value for name, value in zip(axes, values, strict=True) if value not in (None, DEFAULTS.get(name))},
            extra or {},
        )
        for values in product(*axes.values())
    ]
    for cell in cells:
        check(cell)
    return unique(cells)


def unique(cells: Iterable[Cell]) -> list[Cell]:
    """The cells in order, each once."""
    return list({cell.name: cell for cell in cells}.values())


def check(cell: Cell) -> None:
    """Refuse values and combinations that no run could have."""
    at = cell.coordinates
    for name, value in at.items():
        axis = AXES[name]
        if axis.choices and value not in axis.choices:
            raise AnnotError(f"{name} {value!r} given; allowed are {', '.join(axis.choices)}.")
        if axis.least is not None and not float(value) >= axis.least:  # type: ignore[arg-type]
            raise AnnotError(f"{name} {value} given; it must be {axis.least:g} or more.")
    if at.get("faithful") and at.get("method", DEFAULTS["method"]) not in RELEASED:
        raise AnnotError(
            f"method {at.get('method', 'ours')} has no released form; faithful true goes with {', '.join(RELEASED)}."
        )
    _check_prior(at)
    cap, hit = at.get("worker_cap"), at.get("hit_size")
    if cap is not None and hit is not None and float(cap) < float(hit):
        raise AnnotError(f"worker_cap {cap} is below hit_size {hit}: no worker could take one HIT. Raise the cap.")
    if at.get("distractors") and not at.get("classes") and "data.classes" not in cell.extra:
        raise AnnotError("distractors are images of classes that the task leaves out; name those it keeps as classes a,b,c.")


def _check_prior(at: Mapping[str, Value]) -> None:
    gold = at.get("gold") and at.get("estimate") == "gold"
    if at.get("prior") in WORKER_PRIORS and not gold and not at.get("oracle"):
        raise AnnotError(
            f"prior {at['prior']} describes each worker before the first answer, which takes gold questions or an oracle; "
            "give gold 20 and estimate gold, or oracle true (to be reported as oracle-prior)."
        )
    if at.get("prior") == "class" and at.get("estimate") not in ("em", "gold") and not at.get("oracle"):
        raise AnnotError("prior class needs an accuracy for each class; give estimate em, gold with gold 20, or oracle true.")
    if at.get("estimate") == "gold" and not at.get("gold") and not at.get("oracle"):
        raise AnnotError("estimate gold needs gold questions; give gold 20, or another estimate.")


def read_value(name: str, text: str) -> Value:
    """A value of the axis from the command line; ``none`` leaves the setting as it is."""
    if text.lower() == "none":
        return None
    try:
        value: Value = AXES[name].read(text)
    except ValueError:
        kind = {int: "a whole number", float: "a number"}.get(AXES[name].read, "true or false")  # type: ignore[call-overload]
        raise AnnotError(f"{name} {text!r} given; it must be {kind}.") from None
    return value


def read_settings(pairs: Sequence[str]) -> dict[str, str]:
    """``key=value`` pairs as settings."""
    if wrong := [pair for pair in pairs if not re.fullmatch(r"[A-Za-z_][\w.]*=.*", pair, flags=re.S)]:
        raise AnnotError(f"--set {wrong[0]!r} given; it must be key=value, such as model.lr=0.1.")
    return dict(pair.split("=", 1) for pair in pairs)


def _text(axis: str, value: Value) -> str:
    if axis == "oracle":
        return ORACLE_FILE if value else "null"
    if axis == "classes":
        return f"[{str(value).strip('[]')}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
