"""Each file of a run's folder, read and checked: damage is an AnnotError that names the file and says what to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from lightning_annot.stored import (
    POSTERIOR,
    SUMMARY,
    check_end,
    damaged,
    read_arrays,
    read_object,
    read_text,
    reading,
    texts,
)

LABELS, WORKERS, MACHINES, ROUNDS = "labels.csv", "workers.csv", "machines.csv", "rounds.csv"
CONFIG, CONFUSIONS = "config.yaml", "confusions.npz"
LABEL_COLUMNS = ("task", "label", "confidence", "risk", "n_annotations", "status")
STATUSES = ("finished", "unfinished", "prototype")

_NAMES = {LABELS: ("task", "label", "status"), WORKERS: ("worker", "state", "reason"), MACHINES: ("machine",)}
_NUMBERS = {WORKERS: ("n_annotations", "accuracy_mean", "accuracy_low", "accuracy_high"), MACHINES: (), ROUNDS: ("round",)}


def read_labels_table(directory: Path, n_items: int | None) -> pd.DataFrame:
    """``labels.csv``, which must be there. ``n_items``: the rows that it must have, None where nothing says so."""
    path = directory / LABELS
    labels = _read_csv(path)
    if missing := [name for name in LABEL_COLUMNS if name not in labels]:
        raise damaged(path, f"it has no column {', '.join(missing)}; it must have {', '.join(LABEL_COLUMNS)}")
    number = {name: labels[name].to_numpy() for name in ("confidence", "risk", "n_annotations")}
    is_prototype = labels["status"] == "prototype"  # one may have no figures
    if odd := [name for name, values in number.items() if values.dtype.kind not in "iuf"]:
        raise damaged(path, f"its column {odd[0]} holds other things than numbers")
    wrong = {
        "no task or label": (labels["task"] == "") | (labels["label"] == ""),
        "no confidence from 0 to 1": ~(
            (number["confidence"] >= 0) & (number["confidence"] <= 1) | (is_prototype & labels["confidence"].isna())
        ),
        "no risk from 0 up": ~((number["risk"] >= 0) & (number["risk"] < np.inf) | (is_prototype & labels["risk"].isna())),
        "no number of answers": ~(number["n_annotations"] >= 0),
        f"a status that is none of {', '.join(STATUSES)}": ~labels["status"].isin(STATUSES),
        "a task that is above already": labels.duplicated("task"),
    }
    for what, rows in wrong.items():
        if len(bad := np.flatnonzero(rows)):
            raise damaged(path, f"{len(bad)} rows, the first after {bad[0]} others, have {what}")
    if n_items is not None and len(labels) != n_items:
        raise damaged(path, f"it has {len(labels)} rows, and the run {n_items} items")
    return labels


def read_workers(directory: Path) -> pd.DataFrame:
    """``workers.csv``; an empty frame where there is none."""
    return _read_numbers(directory / WORKERS)


def read_machines(directory: Path) -> pd.DataFrame:
    """``machines.csv``; an empty frame where there is none."""
    return _read_numbers(directory / MACHINES)


def read_rounds(directory: Path) -> pd.DataFrame:
    """``rounds.csv``; an empty frame where there is none."""
    return _read_numbers(directory / ROUNDS)


def read_summary(directory: Path) -> dict[str, Any]:
    """``summary.json``; empty where there is none."""
    path = directory / SUMMARY
    if not path.is_file():
        return {}
    summary = read_object(path)
    with reading(path):
        for name, check in _SUMMARY.items():
            if name in summary:
                check(summary[name])
        if len(summary.get("class_names", summary.get("classes", []))) != len(summary.get("classes", [])):
            raise ValueError("classes and class_names differ in length")
    return summary


def read_settings(directory: Path) -> tuple[str, dict[str, Any]]:
    """``config.yaml`` as text, and what it says; both empty where there is none."""
    path = directory / CONFIG
    if not path.is_file():
        return "", {}
    text = read_text(path)
    with reading(path):
        check_end(path)
        settings = yaml.safe_load(text)
        if not isinstance(settings, dict):
            raise TypeError("it holds no settings")
        if "trainer" in settings and "ckpt_path" not in settings:  # the parser writes it after all groups
            raise ValueError("it is cut: its last settings are missing")
        _group(settings, "data")
        prices = _group(_group(settings, "annotation"), "prices")
        for name in ("per_answer", "per_second"):
            _number(prices.get(name) or 0)
        if not isinstance(prices.get("workers") or "", str):
            raise TypeError("annotation.prices.workers is no path")
    return text, settings


def read_confusions(directory: Path) -> tuple[np.ndarray | None, list[str]]:
    """``pooled`` (K, K) and the classes of ``confusions.npz``; None and none where it is absent."""
    path = directory / CONFUSIONS
    if not path.is_file():
        return None, []
    pooled, names = read_arrays(path, ("pooled", "classes"))
    with reading(path):
        if names.ndim != 1 or pooled.shape != (len(names), len(names)) or not np.isfinite(pooled.astype(float)).all():
            raise ValueError(f"pooled of shape {pooled.shape} for {names.shape} classes")
    return pooled, [str(name) for name in names]


def read_posterior(directory: Path, n_items: int, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The most probable classes of each item and their probability, both (N, T), from ``posterior.npz``."""
    path = directory / POSTERIOR
    label, probability = read_arrays(path, ("label", "probability"))
    with reading(path):
        if label.ndim != 2 or label.shape != probability.shape or len(label) != n_items:
            raise ValueError(f"shapes {label.shape} and {probability.shape} for the {n_items} rows of {LABELS}")
        label, probability = label.astype(np.int64), probability.astype(np.float64)
        if ((label < 0) | (label >= n_classes)).any() or not ((probability >= 0) & (probability <= 1.01)).all():
            raise ValueError("classes or probabilities out of range")
    return label, probability


def _read_numbers(path: Path) -> pd.DataFrame:
    """A CSV whose columns are numbers, names apart; an empty frame where there is none."""
    if not path.is_file():
        return pd.DataFrame()
    table = _read_csv(path)
    names = _NAMES.get(path.name, ())
    if missing := [name for name in (*names[:1], *_NUMBERS[path.name]) if name not in table]:
        raise damaged(path, f"it has no column {', '.join(missing)}")
    if len(table) and (odd := [name for name in table if name not in names and table[name].dtype.kind not in "iuf"]):
        raise damaged(path, f"its column {odd[0]} holds other things than numbers")
    return table


def _read_csv(path: Path) -> pd.DataFrame:
    """Names stay text, whatever they look like (``007``, ``nan``, ``NA``); empty numbers are nan."""
    with reading(path):
        check_end(path)
        header = pd.read_csv(path, nrows=0).columns
        names = dict.fromkeys(_NAMES.get(path.name, ()), str)
        numbers = {name: ["", "nan"] for name in header if name not in names}
        table = pd.read_csv(path, dtype=names, keep_default_na=False, na_values=numbers, index_col=False)
        if any(table[name].isna().any() for name in names if name in table):
            raise ValueError("a line has fewer cells than the header")
    return table


def _group(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A group of the settings; empty where there is none."""
    found = settings.get(name)
    if found is not None and not isinstance(found, dict):
        raise TypeError(f"{name} holds no settings")
    return found or {}


def _number(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} where a number belongs")


def _count(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError(f"{value!r} where a count belongs")


def _or_none(check: Callable[[object], object]) -> Callable[[object], object]:
    return lambda value: None if value is None else check(value)


def _mapping(value: object) -> None:
    if not isinstance(value, dict):
        raise TypeError(f"a {type(value).__name__} where an object belongs")


def _words(value: Any) -> None:
    _mapping(value)
    texts(list(value.values()))


def _leftover(value: Any) -> None:
    _mapping(value)
    for items in value.values():
        texts(items)


def _prices(value: Any) -> None:
    _mapping(value)
    for name in ("per_answer", "per_second"):
        _number(value.get(name, 0))
    _mapping(value.get("workers", {}))
    for price in value.get("workers", {}).values():
        _number(price)


def _reliability(value: Any) -> None:
    _mapping(value)
    if {*value} != {"confidence", "accuracy", "count"} or len({len(column) for column in value.values()}) != 1:
        raise TypeError("reliability has other columns")
    for column in value.values():
        for number in column:
            _number(number)


def _word(value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} where a text belongs")


_SUMMARY: dict[str, Callable[[Any], object]] = {
    "classes": texts,
    "class_names": texts,
    "unreadable_images": texts,
    "feature_scale": _words,
    "threshold": _number,
    "n_items": _count,
    "prototypes": _count,
    "cap": _or_none(_number),
    "stop_reason": _word,
    "excluded_workers": _mapping,
    "paused_workers": _mapping,
    "leftover": _leftover,
    "prices": _prices,
    "reliability": _reliability,
}
