"""How each worker does: one row a worker, from the annotation log and a run's files alone; no truth but the prototypes'."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from scipy.stats import beta

from lightning_annot.report.drift import drift
from lightning_annot.report.reading import read_posterior
from lightning_annot.report.run_files import RunFiles
from lightning_annot.stored import POSTERIOR
from lightning_annot.types import AnnotError

TRUSTED = "trusted"
TOP_PAIRS = 5  # confusions told of each worker
LEAST_PAIR = 0.5  # expected wrong answers that make a confusion worth telling
BREAK = 300.0  # seconds between two answers that are no longer work
MOST_BATCHED = 0.1  # share of answers committed together, above which the times of the log say nothing of the pace


@dataclass(frozen=True)
class Said:
    """What was said, less audits: ``item``, ``worker``, ``label`` (A,) as indices, -1 for a skip; ``gold`` (A,) bool.

    ``right`` (A,): probability that the answer is the item's class, as the run believes; nan for a skip.
    """

    item: np.ndarray
    worker: np.ndarray
    label: np.ndarray
    gold: np.ndarray
    right: np.ndarray


def scorecards(run: RunFiles, answers: pd.DataFrame) -> pd.DataFrame:
    """The scorecards: one row for each worker of ``workers.csv`` and of the log's ``answers``.

    Everything but gold and seconds goes by ordinary answers. Raises AnnotError where the log is of another run.
    """
    answers = answers[answers["kind"] != "audit"].reset_index(drop=True)
    names = pd.Index(run.workers.get("worker", []), dtype=object)
    names = names.append(pd.Index(answers["worker"].unique(), dtype=object).difference(names, sort=False))
    said = _said(run, answers, names)
    ordinary, given = ~said.gold, said.label >= 0
    n = len(names)
    own = _of_the_run(run, names)
    card = {"worker": names, "state": own.pop("state"), "reason": own.pop("reason")}
    card["answers"] = np.bincount(said.worker[ordinary & given], minlength=n)
    card["skips"] = np.bincount(said.worker[ordinary & ~given], minlength=n)
    card |= own
    card |= gold_accuracy(said.worker[said.gold & given], said.right[said.gold & given] > 0.5, n)
    told = ordinary & given
    believed = np.isin(card["state"], (TRUSTED, "paused"))
    card |= agreement(said.item[told], said.worker[told], said.label[told], believed, len(run.classes))
    card |= _pace(said.worker, answers, n)
    group = 2 * answers["round"].to_numpy(np.int64) + said.gold
    card |= drift(said.worker[given], group[given], said.right[given], n)
    card["confusions"] = _confusions(said, run, n)
    card["cost"] = _cost(said.worker, answers["seconds"], names, run.summary.get("prices", {}))
    return pd.DataFrame(card)


def interval(row: Mapping[str, Any], name: str) -> str:
    """The interval of a scorecard's ``accuracy`` or ``gold``, as text; empty where there is none."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return "" if np.isnan(low) else f"{100 * low:.0f} to {100 * high:.0f} %"


def gold_accuracy(worker: np.ndarray, right: np.ndarray, n_workers: int) -> dict[str, np.ndarray]:
    """Columns ``gold``, ``gold_right`` and accuracy with an exact central 90% interval (Clopper & Pearson 1934).

    ``worker`` (G,) and ``right`` (G,) bool of the answers to gold questions; nan for workers without any.
    """
    n = np.bincount(worker, minlength=n_workers)
    hits = np.bincount(worker, right, minlength=n_workers).astype(np.int64)
    low = np.where(hits > 0, beta.ppf(0.05, np.maximum(hits, 1), n - hits + 1), 0.0)
    high = np.where(hits < n, beta.ppf(0.95, hits + 1, np.maximum(n - hits, 1)), 1.0)
    share = {"gold_accuracy": hits / np.maximum(n, 1), "gold_low": low, "gold_high": high}
    return {"gold": n, "gold_right": hits} | {name: np.where(n > 0, value, np.nan) for name, value in share.items()}


def agreement(
    item: np.ndarray, worker: np.ndarray, label: np.ndarray, believed: np.ndarray, n_classes: int
) -> dict[str, np.ndarray]:
    """How far each worker says what others who are ``believed`` (W,) bool say of the same items.

    ``compared`` (W,): answers to items that have another's answer. ``agreement``: mean share of the others' answers that are
    the same. ``kappa`` = (agreement - chance) / (1 - chance), after Cohen (1960): chance is that of two independent draws, one
    from the worker's answers and one from the others' to the same items. nan where there is nothing to compare.
    """
    n_workers, n_items = len(believed), int(item.max(initial=-1)) + 1
    counts = believed[worker].astype(np.float64)
    _, cell = np.unique(item * n_classes + label, return_inverse=True)
    others = np.bincount(item, counts, minlength=n_items)[item] - counts
    same = np.bincount(cell, counts)[cell] - counts
    kept = others > 0
    i, j, z, per = item[kept], worker[kept], label[kept], 1.0 / others[kept]
    n = np.bincount(j, minlength=n_workers)
    share = np.bincount(j, same[kept] * per, minlength=n_workers) / np.maximum(n, 1)
    # The others' distribution is that of all answers to the item less the worker's own: two sparse products, no pairs.
    shape = (n_workers, n_classes)
    everybody = csr_array((counts, (item, label)), shape=(n_items, n_classes))
    theirs = csr_array((per, (j, i)), shape=(n_workers, n_items)) @ everybody
    theirs = theirs - csr_array((counts[kept] * per, (j, z)), shape=shape)
    own = csr_array((np.ones(len(j)), (j, z)), shape=shape)
    chance = np.asarray(own.multiply(theirs).sum(axis=1)).ravel() / np.maximum(n, 1) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        kappa = np.where(chance < 1.0 - 1e-12, (share - chance) / (1.0 - chance), np.nan)
    return {"compared": n, "agreement": np.where(n > 0, share, np.nan), "kappa": np.where(n > 0, kappa, np.nan)}


def _said(run: RunFiles, answers: pd.DataFrame, names: pd.Index) -> Said:
    item = pd.Index(run.labels["task"]).get_indexer(answers["item"])
    given = answers["label"].notna().to_numpy(bool)
    label = np.full(len(answers), -1)
    label[given] = pd.Index(run.classes).get_indexer(answers.loc[given, "label"])
    if (item < 0).any() or (label[given] < 0).any():
        raise AnnotError(f"the annotation log is about other items or classes than {run.directory}; give the run's own log.")
    classes, probability = _posterior(run)
    here = classes[item] == label[:, None]
    right = np.where(given, (probability[item] * here).sum(1), np.nan)
    gold = (answers["kind"] == "gold").to_numpy(bool)
    return Said(item, names.get_indexer(answers["worker"]), label, gold, right)


def _posterior(run: RunFiles) -> tuple[np.ndarray, np.ndarray]:
    """The most probable classes of each item and their probability, both (N, T)."""
    path = run.directory / POSTERIOR
    if not path.is_file():
        raise AnnotError(f"{path} does not exist; scorecards need what the run believes of every item: run fit once more.")
    return read_posterior(run.directory, len(run.labels), len(run.classes))


def _of_the_run(run: RunFiles, names: pd.Index) -> dict[str, np.ndarray]:
    """State, reason, and accuracy with its interval from ``workers.csv``; who is not in it yet is trusted."""
    table = run.workers.set_index("worker") if "worker" in run.workers else run.workers
    columns = ("accuracy_mean", "accuracy_low", "accuracy_high", "state", "reason")
    table = table.reindex(index=names, columns=list(columns))
    table = table.fillna({"state": TRUSTED, "reason": ""})
    return {name: table[name].to_numpy() for name in columns}


def _pace(worker: np.ndarray, answers: pd.DataFrame, n_workers: int) -> dict[str, np.ndarray]:
    """Quartiles of the seconds an answer took, and answers an hour of work, nan where unknown.

    The hour is counted by the times of the log where answers came in one by one, breaks left out; else by the seconds.
    """
    seconds = answers["seconds"].groupby(worker)
    at = seconds.quantile([0.25, 0.5, 0.75]).unstack().reindex(index=range(n_workers), columns=[0.25, 0.5, 0.75])
    pace = {f"seconds_{name}": at[q].to_numpy() for name, q in (("low", 0.25), ("median", 0.5), ("high", 0.75))}
    moment = pd.to_datetime(answers["answered_at"], format="ISO8601", utc=True)
    gap = moment.groupby(worker).diff().dt.total_seconds().to_numpy(np.float64)
    known, work = ~np.isnan(gap), (gap > 0) & (gap <= BREAK)
    times = np.bincount(worker[work], gap[work], minlength=n_workers)
    counted = np.bincount(worker[work], minlength=n_workers)
    at_once = np.bincount(worker[known & (gap == 0)], minlength=n_workers)
    batched = at_once > MOST_BATCHED * np.bincount(worker[known], minlength=n_workers)
    by_seconds = seconds.mean().reindex(range(n_workers)).to_numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        hourly = np.where(batched | (counted == 0), 3600.0 / by_seconds, 3600.0 * counted / times)
    return pace | {"answers_per_hour": np.where(np.isfinite(hourly), hourly, np.nan)}


def _confusions(said: Said, run: RunFiles, n_workers: int) -> list[str]:
    """What each worker confuses most, as text: "true > answer, expected wrong answers of expected answers to the class"."""
    classes, probability = _posterior(run)
    told, k = said.label >= 0, len(run.classes)
    n_top = classes.shape[1]
    worker, label = np.repeat(said.worker[told], n_top), np.repeat(said.label[told], n_top)
    true, expected = classes[said.item[told]].ravel(), probability[said.item[told]].ravel()
    code, cell = np.unique((worker * k + true) * k + label, return_inverse=True)
    row, row_of = np.unique(code // k, return_inverse=True)
    count = np.bincount(cell, expected, minlength=len(code))
    total = np.bincount(row_of, count, minlength=len(row))[row_of]
    pairs = pd.DataFrame({"worker": code // k // k, "true": code // k % k, "label": code % k, "count": count, "total": total})
    pairs = pairs[(pairs["true"] != pairs["label"]) & (pairs["count"] >= LEAST_PAIR)]
    pairs = pairs.sort_values(["worker", "count"], ascending=[True, False], kind="stable").groupby("worker").head(TOP_PAIRS)
    text: dict[int, list[str]] = {}
    for j, y, z, wrong, of in pairs.itertuples(index=False, name=None):
        text.setdefault(int(j), []).append(f"{run.classes[int(y)]} > {run.classes[int(z)]} {wrong:.1f} of {of:.1f}")
    return ["; ".join(text.get(j, ())) for j in range(n_workers)]


def _cost(worker: np.ndarray, seconds: pd.Series, names: pd.Index, prices: Mapping[str, Any]) -> np.ndarray:
    """What each worker's answers cost, skips and gold among them; one each where the run knows no prices."""
    listed, base = prices.get("workers", {}), prices.get("per_answer", 1.0)
    price = np.array([listed.get(name, base) for name in names], dtype=np.float64)
    taken = np.bincount(worker, seconds.fillna(0.0), minlength=len(names))
    cost: np.ndarray = np.bincount(worker, minlength=len(names)) * price + prices.get("per_second", 0.0) * taken
    return cost
