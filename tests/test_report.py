from __future__ import annotations

import io
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from run_folder import CLASSES, make_run, picture

from lightning_annot.report import plots
from lightning_annot.report.page import SAMPLE, finished_sample, riskiest_items, write_report
from lightning_annot.report.reliability import Reliability
from lightning_annot.report.run_files import read_run
from lightning_annot.report.terminal import print_summary
from lightning_annot.report.thumbnails import FILE, decode, encode, load_thumbnails
from lightning_annot.types import AnnotError

EVIL = "<script>alert(1)</script>&\"'$x_$"
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Checker(HTMLParser):
    """Collects tags, and fails on tags that do not close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parse(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    return checker


def test_page_is_whole_and_self_contained(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    path = write_report(run, picture, title="Test run")
    html = path.read_text(encoding="utf-8")
    assert path == run / "report.html"
    outside_text = re.sub(r'base64,[^"]*|<pre>.*?</pre>', "", html, flags=re.S)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", outside_text)
    checker = parse(html)
    for tag, attributes in checker.attributes:
        source = attributes.get("src") or attributes.get("href") or attributes.get("xlink:href") or "#"
        assert source.startswith(("data:", "#")), (tag, source)
    images = [attributes for tag, attributes in checker.attributes if tag == "img"]
    assert len(images) == 60
    assert all(attributes["alt"] for attributes in images)
    ids = [attributes["id"] for _, attributes in checker.attributes if attributes.get("id")]
    repeated = {name for name in ids if ids.count(name) > 1}
    assert not {name for name in repeated if not re.fullmatch(r"[mpC]\w*[0-9a-f]{8,}\w*", name)}
    for text in (
        "Test run",
        "95.2 %",
        "every item is finished",
        "worker_05",
        "Answers an item",
        "threshold: 0.1",
        "100 prototypes drawn",
    ):
        assert text in html
    assert "secret" not in html
    assert not list(run.glob(".*.tmp"))


def test_everything_is_escaped(tmp_path: Path) -> None:
    classes = [EVIL, *CLASSES[1:]]
    run = make_run(tmp_path / "run", classes=classes)
    for name, column in (("labels.csv", "task"), ("workers.csv", "worker")):
        table = pd.read_csv(run / name, dtype={column: str})
        table[column] = EVIL + table[column]
        table.to_csv(run / name, index=False)
    (run / "config.yaml").write_text(f"name: {EVIL}\n")
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"stop_reason": EVIL, "unreadable_images": [EVIL]}))
    html = write_report(run, picture, title=EVIL).read_text(encoding="utf-8")
    assert html.count("<script") == 1
    assert html.count("</script") == 1
    assert "&lt;script&gt;alert(1)" in html
    parse(html)


def test_people_see_readable_names(tmp_path: Path) -> None:
    ids = [f"n{k:08d}" for k in range(len(CLASSES))]
    run = make_run(tmp_path / "run", classes=ids)
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"class_names": CLASSES}))
    files = read_run(run)
    assert list(files.names.values()) == CLASSES
    assert set(files.labels["label"]) <= set(ids)
    page = write_report(run, picture).read_text()
    drawing = page[page.index("All workers together") :]
    drawing = drawing[: drawing.index("</svg>")]
    assert all(drawing.count(f">{name}<") == 2 for name in CLASSES)  # rows and columns
    assert not any(name in drawing for name in ids)
    assert all(f"<b>{name}</b>" in page for name in CLASSES[:3])
    assert f'<small class="soft">{ids[0]}</small>' in page  # beside its name, so that it is found in labels.csv


def test_only_labels_are_needed(tmp_path: Path) -> None:
    full = make_run(tmp_path / "full")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "labels.csv").write_bytes((full / "labels.csv").read_bytes())
    html = write_report(bare).read_text(encoding="utf-8")
    parse(html)
    assert "<img" not in html
    assert "Accuracy" not in html
    assert "Finished" in html
    assert "nan" not in re.sub(r"<style.*?</style>|<script.*?</script>", "", html, flags=re.S).lower()


def test_without_truth_nothing_of_it_is_shown(tmp_path: Path) -> None:
    html = write_report(make_run(tmp_path / "run", known_truth=False)).read_text(encoding="utf-8")
    assert "against the known truth" not in html
    assert "Reliability" not in html
    assert "What workers confuse" in html


@pytest.mark.parametrize("first_answers", [0, 1])
def test_first_row_and_unasked_items(tmp_path: Path, first_answers: int) -> None:
    run = make_run(tmp_path / "run", n=30, w=1, rounds=1, classes=["no", "yes"])
    labels = pd.read_csv(run / "labels.csv", dtype={"task": str}).assign(
        risk=0.0, n_annotations=first_answers, status="prototype" if first_answers == 0 else "unfinished"
    )
    labels.to_csv(run / "labels.csv", index=False)
    html = write_report(run).read_text(encoding="utf-8")
    parse(html)
    assert f"0 of {30 * first_answers} items" in html
    assert ("30 prototypes" in html) == (first_answers == 0)
    assert ("Look at these first" in html) == (first_answers == 1)  # prototypes are sure


def test_names_stay_text(tmp_path: Path) -> None:
    header = "task,label,confidence,risk,n_annotations,status\n"
    rows = "007,NA,0.9,0.1,1,finished\nnan,1e3,0.8,0.2,2,unfinished\nnull,1e3,,,0,prototype\n"
    (tmp_path / "labels.csv").write_text(header + rows)
    run = read_run(tmp_path)
    assert list(run.labels["task"]) == ["007", "nan", "null"]
    assert run.classes == ["1e3", "NA"]
    assert np.isnan(run.labels["risk"].iloc[2])
    assert len(run.items) == 2


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AnnotError, match=r"no labels\.csv"):
        write_report(tmp_path)
    (tmp_path / "labels.csv").write_text("task,label\n1,a\n")
    with pytest.raises(AnnotError, match="no column confidence, risk, n_annotations, status"):
        write_report(tmp_path)


def test_thumbnails_are_kept_for_the_next_page(tmp_path: Path) -> None:
    first = load_thumbnails(tmp_path, ["a", "b"], picture)
    assert json.loads((tmp_path / FILE).read_text()) == first
    assert load_thumbnails(tmp_path, ["b", "a", "unknown"]) == first
    assert set(load_thumbnails(tmp_path, ["b", "c"], picture)) == {"b", "c"}


def test_unreadable_image_is_left_out(tmp_path: Path) -> None:
    def opener(item: str) -> Image.Image | None:
        if item == "truncated":
            raise OSError("truncated")
        return None if item == "absent" else picture(item)

    assert set(load_thumbnails(tmp_path, ["good", "truncated", "absent"], opener)) == {"good"}


@pytest.mark.parametrize(("size", "expected"), [((8, 4), (96, 48)), ((500, 250), (96, 48)), ((3, 1000), (1, 96))])
def test_thumbnail_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert decode(encode(Image.new("RGBA", size))).size == expected


def test_selection(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    risky = riskiest_items(run, 10)
    assert risky["risk"].is_monotonic_decreasing
    assert risky["risk"].iloc[-1] >= run.items["risk"].drop(risky.index).max()
    sample = finished_sample(run)
    assert len(sample) == SAMPLE
    assert set(sample["status"]) == {"finished"}
    counts = sample["label"].value_counts()
    assert counts.max() - counts.min() <= 1
    pd.testing.assert_frame_equal(sample, finished_sample(run))


def test_large_run_is_fast_and_small(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n=125_000, w=400, rounds=300, classes=[f"class {k}" for k in range(100)])
    start = time.process_time()  # of this process: others may be busy
    path = write_report(run, picture)
    assert time.process_time() - start < 15  # about 2 s
    assert path.stat().st_size < 3_000_000


@pytest.mark.parametrize("k", [2, 10, 100])
def test_confusion_sizes(k: int) -> None:
    figure = plots.plot_confusion(np.eye(k), [f"a rather long class name {i}" for i in range(k)])
    labels = figure.axes[0].get_yticklabels()
    assert len(labels) == min(k, 25 if k == 100 else k)
    assert labels[0].get_text() == "a rather long cla…"
    assert plots.figure_png(figure).startswith(b"\x89PNG")


def test_figures_take_edge_cases() -> None:
    empty = Reliability([0.0] * 10, [0.0] * 10, [0] * 10)
    zero_rows = pd.DataFrame({"annotations_per_item": [0.0], "mean_risk": [0.0], "finished_fraction": [1.0]})
    figures = [
        plots.plot_reliability(empty),
        plots.plot_quality(zero_rows),
        plots.plot_error(zero_rows),
        plots.plot_risk(np.zeros(5)),
        plots.plot_risk(np.array([0.0, 0.1, 0.5]), threshold=0.1),
        plots.plot_answers_per_item(np.zeros(3)),
    ]
    assert all(isinstance(figure, Figure) and plots.figure_svg(figure).startswith("<svg") for figure in figures)


@pytest.mark.parametrize("threshold", [0.07, 1e-9])
def test_risk_bars_do_not_cross_the_threshold(threshold: float) -> None:
    figure = plots.plot_risk(np.linspace(0, 0.83, 200), threshold)
    edges = [bar.get_x() for bar in figure.axes[0].patches]
    assert min(abs(edge - threshold) for edge in edges) < 1e-12
    assert sum(bar.get_height() for bar in figure.axes[0].patches) == 200
    assert len(edges) < 100


def test_terminal_summary(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a run with [brackets]")
    console = Console(file=io.StringIO(), width=80)
    print_summary(console, run)
    text = console.file.getvalue()
    for part in ("[brackets]", "95.2 %", "1.20", "1.32", "Stopped: every item", str(run / "labels.csv")):
        assert part in text
