"""What each section of the results says: tables, pictures, and sentences that follow from the numbers alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from lightning_annot.experiments.curves import Run, correlation, figures_of, importance, spreads, value_at
from lightning_annot.experiments.figures import draw_assignment, draw_curves, draw_spec, draw_workers, save_png, tells_workers
from lightning_annot.experiments.page import NOTHING, Page, best, difference, from_to, mean_sd, ordering, run_table
from lightning_annot.experiments.released import AT, STOP, Baselines, gaps, released_curves, released_line
from lightning_annot.experiments.specs import SPECS, Panel, Paper, panels_of

_BY_NAME = {spec.name: spec for spec in SPECS}
_LADDER = ("online DS", "Lean", "Improved Lean", "efficient annotation", "ours")
_RISES = (True, True, False, True)  # DS < Lean < Improved Lean <= efficient annotation < ours
_WHY_LEAN = (
    "Why Lean may lead here: its probability of an image is from a fold that did not learn from the image's answers, while "
    "Improved Lean and efficient annotation count these answers twice, in the learner and beside it, as in the paper."
)
_WHY_NOISE = (
    "At one accuracy structured mistakes say more: they point to few classes. A crowd model that shrinks to the pooled full "
    "confusion learns where they point; one that expects even mistakes is misled by them"
)


@dataclass(frozen=True)
class Book:
    """``folder``: the page's own; ``pictures`` lies below it. ``paper`` and ``baselines`` are empty where they are absent."""

    folder: Path
    pictures: Path
    paper: Paper = field(default_factory=dict)
    baselines: Baselines = field(default_factory=dict)

    def draw(self, page: Page, name: str, runs: Sequence[Run], prefix: str = "") -> None:
        """The figures of one kind that the runs can fill."""
        for path in draw_spec(_BY_NAME[name], runs, self.pictures, self.paper, prefix):
            page.picture(_BY_NAME[name].title, path, self.folder)


def write_released(page: Page, runs: Sequence[Run], book: Book) -> None:
    """Gaps to the released code's curves."""
    if not book.baselines:
        page.add("The released code's curves are absent (`--baselines`), so nothing is compared.")
        return
    header = ["workers", "method", *(f"at {x:g}" for x in AT), "end", "ours at the end", "released", "seeds (ours, theirs)"]
    rows, found, means, last = [], [], [], []
    panels = panels_of(_BY_NAME["methods"], runs, least_lines=1)
    for panel in panels:
        for label, line in panel.lines.items():
            table = gaps(book.baselines, line)
            if table is None:
                continue
            group, end = str(line[0].at("group")), table.iloc[-1]
            found += [(abs(gap), label, group, at) for gap, at in zip(table["gap"], table["at"], strict=True)]
            means.append(float(table["gap"][: len(AT)].abs().mean()))
            last.append(abs(float(end["gap"])))
            shown = [f"{100 * gap:+.1f}" for gap in table["gap"]]
            ends = [f"{100 * end['ours']:.1f}", f"{100 * end['released']:.1f}"]
            seeds = f"{len(line)}, {len(released_curves(book.baselines, line[0]))}"
            rows.append([group, label, *shown, *ends, seeds])
    page.add(
        "Our accuracy less the released code's, in points, at that many answers an image; a curve that ended early is carried "
        f"on at its last value. End: {', '.join(f'{x:g} ({group})' for group, x in STOP.items())}, where the released code's "
        "own rule would stop. Both run on CIFAR-10 features of one network, but on other images and other draws of workers."
    )
    page.table(header, rows)
    if found:
        worst, label, group, at = max(found)
        page.add(
            f"The mean absolute gap of a row is {100 * min(means):.1f} to {100 * max(means):.1f} points, at the end at most "
            f"{100 * max(last):.1f}; the largest of all is {100 * worst:.1f}: {label} with {group} workers at {at:g} answers "
            "an image. That each preset follows the released code to 3 points on the mean and 2 at the end "
            f"{'holds' if max(means) <= 0.03 and max(last) <= 0.02 else 'does not hold'}."
        )
        page.add(*map(_released_ladder, panels))
        dashed = partial(released_line, book.baselines)
        figure = draw_curves(_BY_NAME["methods"], panels[:3], dashed, "the released code")
        page.picture("Presets and released code", save_png(figure, book.pictures / "released.png"), book.folder)


def _released_ladder(panel: Panel) -> str:
    lines = {str(label).partition(" (")[0]: runs for label, runs in panel.lines.items()}
    said = _order_of(lines, _LADDER[:-1], _RISES[:-1])
    return f"{panel.title.capitalize()}, as released: {said}" if said else ""


def write_methods(page: Page, runs: Sequence[Run], book: Book) -> None:
    """All presets, the order that the paper claims, validation, early stopping, best five."""
    for panel in panels_of(_BY_NAME["methods"], runs, least_lines=1):
        page.add(f"**{panel.title.capitalize()}**")
        run_table(page, panel.lines, "method")
        page.add(best(panel.lines), _ladder(panel))
    book.draw(page, "methods", runs)
    pairs = {"validation": ("Improved Lean", "Lean"), "stopping": ("efficient annotation", "Improved Lean"), "top5": ()}
    for name, pair in pairs.items():
        page.add(f"**{_BY_NAME[name].title}**")
        for panel in panels_of(_BY_NAME["methods"], runs):
            if pair and all(label in panel.lines for label in pair):
                page.add(_pair(panel, name, *pair))
            elif not pair:
                page.add(f"{panel.title.capitalize()}: " + best(panel.lines, "top5_accuracy"))
        book.draw(page, name, runs)
    for path in draw_workers([run for run in runs if run.at("method") == "ours"], book.pictures):
        page.picture("Confusions: the worker with most answers, simulated and estimated; all pooled", path, book.folder)


def _ladder(panel: Panel) -> str:
    said = _order_of(panel.lines, _LADDER, _RISES)
    return f"{said} {_WHY_LEAN}" if "is not above Lean" in said else said


def _order_of(lines: Mapping[str, Sequence[Run]], names: Sequence[str], rises: Sequence[bool]) -> str:
    """Whether accuracy rises along ``names`` at half an answer and at one answer an image; empty if one is absent."""
    if any(name not in lines for name in names):
        return ""
    claim = names[0] + "".join(f" {'<' if up else '<='} {name}" for up, name in zip(rises, names[1:], strict=True))
    text = []
    for x in (0.5, 1.0):
        values = [[float(value_at(run.rounds, "accuracy", x)) for run in lines[name]] for name in names]
        text.append(f"At {x:g} answers an image it {ordering(names, values, rises)}")
    return f"The order {claim}. {' '.join(text)}"


def _pair(panel: Panel, name: str, first: str, second: str) -> str:
    a, b = ([figures_of(run) for run in panel.lines[label]] for label in (first, second))
    text = f"{panel.title.capitalize()}: " + difference(first, _all(a, "accuracy"), second, _all(b, "accuracy"))
    if name == "validation":
        return f"{text} ECE at the end: {mean_sd(_all(a, 'ece'), 3)} and {mean_sd(_all(b, 'ece'), 3)}."
    done = [mean_sd(_all(some, "finished_fraction"), 1, 100) for some in (a, b)]
    spent = [mean_sd(_all(some, "annotations_per_item"), 2) for some in (a, b)]
    return f"{text} They stop at {spent[0]} and {spent[1]} answers an image with {done[0]} and {done[1]} % finished."


def _all(rows: Sequence[dict[str, float]], name: str) -> list[float]:
    return [row[name] for row in rows]


def write_axis(name: str, what: str, page: Page, runs: Sequence[Run], book: Book) -> None:
    """One thing varies: a table, how the end moves along it, and the figure."""
    panels = panels_of(_BY_NAME[name], runs, least_lines=1)
    for panel in panels:
        if len(panels) > 1:
            page.add(f"**{panel.title.capitalize()}**")
        run_table(page, panel.lines, what)
        if len(panel.lines) > 1:
            page.add(
                from_to("Answers an image at the end", panel.lines, "annotations_per_item", 2)
                + " "
                + from_to("Accuracy at the end", panel.lines, "accuracy", 1, 100, " %")
                + " "
                + from_to("ECE", panel.lines, "ece", 3)
            )
    book.draw(page, name, runs)


def write_noise(page: Page, runs: Sequence[Run], book: Book) -> None:
    """Structured and uniform noise, and whether uniform is the easier, as in the paper."""
    write_choice("noise", "noise", page, runs, book)
    for panel in panels_of(_BY_NAME["noise"], runs):
        ends = {label: np.mean(_all([figures_of(run) for run in line], "accuracy")) for label, line in panel.lines.items()}
        if set(ends) == {"structured noise", "uniform noise"}:
            easier = ends["uniform noise"] > ends["structured noise"]
            said = "holds" if easier else f"does not hold. {_WHY_NOISE}"
            page.add(f"{panel.title.capitalize()}: that uniform noise is easier {said}.")


def write_choice(name: str, what: str, page: Page, runs: Sequence[Run], book: Book) -> None:
    """Alternatives without an order: a table, the best against the worst, and the figure; what else differs apart."""
    panels = panels_of(_BY_NAME[name], runs, least_lines=1)
    for panel in panels:
        if len(panels) > 1:
            page.add(f"**{panel.title.capitalize()}**")
        run_table(page, panel.lines, what)
        page.add(best(panel.lines))
    book.draw(page, name, runs)


def write_priors(page: Page, runs: Sequence[Run], book: Book) -> None:
    """Priors at each strength, honest ones apart from those that read the simulated workers."""
    page.add("Rows called oracle-prior read the simulated workers; no method could know that. Gold questions are paid.")
    for name in (spec.name for spec in SPECS if spec.name.startswith("priors_")):
        for panel in panels_of(_BY_NAME[name], runs, least_lines=1):
            page.add(f"**{_BY_NAME[name].title}**")
            run_table(page, panel.lines, "prior", paid=True)
            for source in ("gold", "oracle-prior"):
                some = {label: line for label, line in panel.lines.items() if source in label}
                page.add(best(some), _worker_prior(some))
        book.draw(page, name, runs)


def _worker_prior(lines: dict[str, list[Run]]) -> str:
    """Whether knowing each worker's accuracy (B) helps most, as in the paper, and how far workers and classes differ."""
    ends = {label: float(np.mean(_all([figures_of(run) for run in line], "accuracy"))) for label, line in lines.items()}
    if len(ends) < 3 or not any(label.startswith("B ") for label in ends):
        return ""
    first = max(ends, key=ends.__getitem__)
    by_worker, by_class = spreads(next(iter(lines.values()))[0])
    said = "holds" if first.startswith("B ") else f"does not hold: {first} does"
    return (
        f"That B helps most {said}. The standard deviation of these simulated people's accuracy is {100 * by_class:.0f} points "
        f"between classes, and {100 * by_worker:.0f} between workers."
    )


def write_assignment(page: Page, runs: Sequence[Run], book: Book) -> None:
    """Random against greedy, and whether those who are good where the model is bad are asked more."""
    write_choice("assignment", "workers chosen", page, runs, book)
    for panel in panels_of(_BY_NAME["assignment"], [run for run in runs if tells_workers(run)], least_lines=1):
        r = {label: [correlation(importance(run)) for run in line] for label, line in panel.lines.items()}
        told = ", ".join(f"{mean_sd(values, 2)} ({label})" for label, values in r.items())
        page.add(
            f"{panel.title.capitalize()}: correlation of a worker's importance with the answers asked of it: {told}. "
            "Importance is a worker's accuracy by class, weighted inversely to the learner's accuracy in the class."
        )
    for path in draw_assignment(runs, book.pictures):
        page.picture("Worker importance and answers", path, book.folder)


def write_people(page: Page, runs: Sequence[Run], book: Book) -> None:
    """Recorded answers of real people."""
    panels = panels_of(_BY_NAME["methods"], runs, least_lines=1)
    for panel in panels:
        run_table(page, panel.lines, "method")
        page.add(best(panel.lines))
        if "ours" not in panel.lines:
            continue
        ours = [figures_of(run) for run in panel.lines["ours"]]
        gap = np.mean(_all(ours, "finished_precision"))
        wanted = 1 - float(panel.lines["ours"][0].summary.get("threshold", np.nan))
        held = NOTHING if np.isnan(wanted) else "holds" if gap >= wanted else "does not hold"
        page.add(f"That the finished labels are right as often as C promises ({100 * wanted:.0f} %) {held}: {100 * gap:.1f} %.")
    book.draw(page, "methods", runs, "people_")


CHAPTERS: dict[str, tuple[str, Callable[[Page, Sequence[Run], Book], None]]] = {
    "released": ("Against the released code", write_released),
    "methods": ("Methods", write_methods),
    "threshold": ("Risk threshold", partial(write_axis, "threshold", "threshold")),
    "workers": ("Number of workers", partial(write_axis, "workers", "workers")),
    "per_round": ("Labels a round", partial(write_axis, "per_round", "labels a round")),
    "priors": ("Priors and their strength", write_priors),
    "assignment": ("Task assignment", write_assignment),
    "noise": ("Structured and uniform noise", write_noise),
    "distractors": ("Distractors", partial(write_axis, "distractors", "images of no class")),
    "people": ("Real people", write_people),
}
