"""``report.html``: one self-contained page about a run, made from the run's files alone."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Template
from markupsafe import Markup
from matplotlib.figure import Figure

from lightning_annot.files import write_text
from lightning_annot.report import plots
from lightning_annot.report.reliability import Reliability
from lightning_annot.report.run_files import RunFiles, evidence_note, headlines, percent, read_run
from lightning_annot.report.templates import templates
from lightning_annot.report.thumbnails import Opener, load_thumbnails

RISKIEST, SAMPLE = 24, 36
_MOST_WORKERS, _MOST_ROUNDS, _MOST_MISTAKES = 200, 200, 12

_FILES = {
    "labels.csv": "a label for every item, with its confidence and risk",
    "posterior.npz": "the most probable classes of every item, to train a classifier on",
    "workers.csv": "who answered, how much and how well",
    "scorecards.html": "how each worker does, for people; scorecards.csv is the same as a table",
    "machines.csv": "which models were asked, how well they see and what they weigh",
    "confusions.npz": "what each worker answers for each true class",
    "rounds.csv": "one row a round, for your own plots",
    "annotations.db": "every question and answer, the only file that cannot be made again",
    "config.yaml": "the settings of the run",
    "checkpoints": "to resume the run",
}


def write_report(run_dir: str | os.PathLike[str], thumbnails: Opener | None = None, title: str = "") -> Path:
    """Write ``report.html`` into a run's folder and return its path; an older report is replaced in one step.

    Args:
        run_dir: folder of a run; only ``labels.csv`` must be in it.
        thumbnails: item id -> image or None, for about sixty items; pictures are kept in ``thumbnails.json`` for the
            next time.
        title: heading of the page; the folder's name when empty.

    Raises:
        AnnotError: no ``labels.csv``, or one with other columns.
    """
    run = read_run(run_dir)
    path = run.directory / "report.html"
    write_text(path, render(run, thumbnails, title))
    return path


def render(run: RunFiles, opener: Opener | None = None, title: str = "") -> str:
    """The page as HTML text."""
    riskiest, sample = riskiest_items(run), finished_sample(run)
    pictures = load_thumbnails(run.directory, [*riskiest["task"], *sample["task"]], opener)
    names = run.names
    return template("page.html", called=lambda label: names.get(label, label)).render(
        title=title or run.directory.resolve().name,
        summary=run.summary,
        headlines=headlines(run),
        evidence=evidence_note(run),
        figures=_figures(run),
        riskiest=_records(riskiest),
        sample=_records(sample),
        pictures=pictures,
        mistakes=_mistakes(run),
        workers=_workers(run),
        n_workers=len(run.workers),
        machines=_records(run.machines),
        balance=_balance(run),
        n_prototypes=len(run.labels) - len(run.items),
        rounds=_rounds(run),
        n_rounds=len(run.rounds),
        config=_without_passwords(run.config),
        directory=str(run.directory.resolve()),
        files=[(name, note) for name, note in _FILES.items() if (run.directory / name).exists()],
    )


def template(name: str, **filters: Callable[..., str | None]) -> Template:
    """A page of this package, in which all text is escaped; it knows ``percent`` and the ``filters``."""
    environment = templates("lightning_annot.report", ".")
    environment.filters.update(filters, percent=percent)
    return environment.get_template(name)


def riskiest_items(run: RunFiles, most: int = RISKIEST) -> pd.DataFrame:
    """The items of highest risk, highest first; equal risks by order of the file."""
    return run.items.sort_values("risk", ascending=False, kind="stable").head(most)


def finished_sample(run: RunFiles, most: int = SAMPLE) -> pd.DataFrame:
    """Some finished items of each class, ``most`` in all, always the same ones for the same file."""
    finished = run.items[run.items["status"] == "finished"]
    drawn = finished.iloc[np.random.default_rng(0).permutation(len(finished))]
    turn = drawn.groupby("label").cumcount()  # first one of every class, then a second one, ...
    return drawn.loc[turn.sort_values(kind="stable").index[:most]].sort_values("label", kind="stable")


def _figures(run: RunFiles) -> dict[str, dict[str, Any]]:
    """Title, caption and drawing of every figure that the run has data for, by name."""
    items, drawn = run.items, {}

    def add(name: str, title: str, caption: str, figure: Figure) -> None:
        drawn[name] = {"title": title, "caption": caption, "svg": inline_svg(figure, title)}

    if len(run.rounds):
        add("quality", "Progress", "What the answers bought.", plots.plot_quality(run.rounds))
        add(
            "error",
            "Error",
            "The error that the run believes in, and the true one if known.",
            plots.plot_error(run.rounds),
        )
    if len(items):
        risk, counts = items["risk"].to_numpy(), items["n_annotations"].to_numpy()
        figure = plots.plot_risk(risk, run.summary.get("threshold"))
        add("risk", "Risk of the labels", "Items left of the threshold are finished.", figure)
        add(
            "answers",
            "Answers an item",
            "Easy items stop early, hard ones get more.",
            plots.plot_answers_per_item(counts),
        )
    if "reliability" in run.summary:
        table = Reliability(**run.summary["reliability"])
        caption = "Below the diagonal the labels are too sure; larger dots are more items."
        add("reliability", "Reliability", caption, plots.plot_reliability(table))
    if len(run.rounds):
        add("seconds", "Time", "Seconds of each round by stage, without the wait for people.", plots.plot_seconds(run.rounds))
    if run.pooled is not None:
        caption = "Row: true class, column: answer, in percent. Blue is right, red is a mistake."
        add("confusion", "All workers together", caption, plots.plot_confusion(run.pooled, list(run.names.values())))
    if len(run.workers):
        add(
            "workers",
            "Accuracy",
            "Estimated accuracy of each worker with its interval.",
            plots.plot_workers(run.workers),
        )
    return drawn


def inline_svg(figure: Figure, title: str) -> Markup:
    """SVG that takes the page's colours, has no name space address and no ids that would repeat between figures."""
    text = plots.figure_svg(figure)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg \1 role="img" aria-label="{title}">', text, count=1)
    return Markup(text.replace(plots.INK, "var(--ink)").replace(plots.GRID, "var(--line)"))


def _workers(run: RunFiles) -> list[dict[str, Any]]:
    """Rows of the workers who answered most."""
    if run.workers.empty:
        return []
    most = run.workers.sort_values("n_annotations", ascending=False, kind="stable").head(_MOST_WORKERS)
    return _records(most)


def _mistakes(run: RunFiles) -> list[dict[str, Any]]:
    """The most probable wrong answers: true class, answer, probability."""
    if run.pooled is None:
        return []
    wrong = run.pooled * (1 - np.eye(len(run.pooled)))
    order = np.argsort(wrong, axis=None)[::-1][:_MOST_MISTAKES]
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [
        {"truth": run.classes[row], "answer": run.classes[column], "share": float(wrong[row, column])}
        for row, column in pairs
        if wrong[row, column] > 0
    ]


def _balance(run: RunFiles) -> list[dict[str, Any]]:
    """One row a class: items given the label, their share, how many are finished, mean confidence, prototypes."""
    items = run.items
    classes = [*run.classes, *sorted(set(items["label"]) - set(run.classes))]
    grouped = items.assign(finished=items["status"] == "finished").groupby("label")
    table = grouped.agg(items=("task", "size"), finished=("finished", "mean"), confidence=("confidence", "mean"))
    prototypes = run.labels.loc[run.labels["status"] == "prototype", "label"].value_counts()
    table = table.reindex(classes)
    table["items"] = table["items"].fillna(0).astype(int)
    table["share"] = table["items"] / max(1, len(items))
    table["prototypes"] = prototypes.reindex(classes).fillna(0).astype(int)
    return _records(table.rename_axis("label").reset_index())


def _rounds(run: RunFiles) -> dict[str, Sequence[Any]]:
    """Header and text cells of the rounds table, newest first."""
    newest = run.rounds.tail(_MOST_ROUNDS).iloc[::-1]
    rows = [[_cell(value) for value in row] for row in newest.itertuples(index=False)]
    return {"columns": [name.replace("_", " ") for name in newest.columns], "rows": rows}


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = table.to_dict("records")
    return records


def _cell(value: Any) -> str:
    if isinstance(value, float) and not value.is_integer():
        return "" if np.isnan(value) else f"{value:.4g}"
    return f"{value:.0f}" if isinstance(value, float) else str(value)


def _without_passwords(config: str) -> str:
    """Settings may hold the URL of a team's database; a report is passed on."""
    return re.sub(r"(://[^:/@\s]*:)[^@\s]+@", r"\1***@", config)
