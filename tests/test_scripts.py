"""The scripts do what they say; the README's pictures are those that ``make_pictures.py`` draws."""

from __future__ import annotations

import importlib.util
import json
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from run_folder import make_run

from lightning_annot.report.page import write_report

ROOT = Path(__file__).resolve().parents[1]
MOST_BYTES = 200_000


def load_script(name: str) -> ModuleType:
    """A file of ``scripts/`` as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_pictures_are_drawn_from_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load_script("make_pictures")
    run_dir = make_run(tmp_path / "run")
    monkeypatch.setenv("PATH", "")  # no browser
    assert script.main(["--run", str(run_dir), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [str(tmp_path / "out" / name) for name in ("progress.png", "error.png")]
    assert "report.png is left as it is" in shown.err
    for path in shown.out.splitlines():
        check_picture(Path(path))


def test_report_is_photographed(tmp_path: Path) -> None:
    script = load_script("make_pictures")
    browser = script.find_browser()
    if browser is None:
        pytest.skip("no Chromium or Chrome here")
    run_dir = make_run(tmp_path / "run")
    write_report(run_dir)
    picture = script.draw_report(run_dir, tmp_path / "report.png", browser)
    assert Image.open(picture).size == script.WINDOW
    check_picture(picture)


@pytest.mark.parametrize("name", ["progress.png", "error.png", "report.png", "label.png", "label-phone.png", "owner.png"])
def test_pictures_of_the_readme_are_small(name: str) -> None:
    check_picture(ROOT / "docs" / "pictures" / name)


def check_picture(path: Path) -> None:
    """A PNG that shows something, small enough for a page."""
    assert path.stat().st_size < MOST_BYTES
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) > 300
        assert len(image.convert("L").getcolors()) > 20


def told(printed: str) -> dict[str, Any]:
    """The JSON that a script printed, whatever Lightning said before it."""
    return json.loads(printed[printed.index("{\n") :])


def test_a_small_round_is_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    size = "--items 400 --classes 4 --workers 6 --annotations 150 --dim 16 --per-round 50 --converged-steps 70"
    monkeypatch.setattr("sys.argv", ["bench_round.py", *size.split()])
    with warnings.catch_warnings():
        load_script("bench_round").main()
    figures = told(capsys.readouterr().out)
    stages = ("train", "predict", "infer", "sample", "ask", "save", "round", "em_iteration", "setup")
    assert all(figures[f"seconds_{stage}"] >= 0 for stage in stages)
    assert figures["annotations"] == 150
    assert figures["em_iterations"] == 10
    assert figures["training_steps"] == 60
    assert figures["accuracy"] > 0.5
    assert figures["accuracy_converged"] > 0.5
    assert figures["peak_gib"] > 0


def test_configurations_are_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = "digits --seeds 1 --set trainer.max_epochs=2 data.batches.steps=20 data.adapt=null"
    monkeypatch.setattr("sys.argv", ["measure.py", *words.split(), "data.backbone={name: null}"])
    load_script("measure").main()
    figures = told(capsys.readouterr().out)
    assert [run["seed"] for run in figures["runs"]] == [1]
    assert [run["rounds"] for run in figures["runs"]] == [2]
    mean = figures["summary"]["digits"]["mean"]
    assert mean["accuracy"] == pytest.approx(figures["runs"][0]["accuracy"], abs=1e-3)


def test_extraction_is_compared_with_a_bare_loop(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--backbone test_resnet --image-size 32 --side 32 --images 40 --batch 8 --workers 0 --repeats 2"
    threads = torch.get_num_threads()
    monkeypatch.setattr("sys.argv", ["bench_features.py", *words.split()])
    load_script("bench_features").main()
    torch.set_num_threads(threads)
    figures = told(capsys.readouterr().out)
    assert figures["images"] == 40
    assert len(figures["ratios"]) == 2
    assert figures["images_per_second"] > 0
    assert figures["ratio"] > 0


def test_features_are_probed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines, bank = ["task,label"], np.zeros((60, 2), np.float32)
    for row in range(60):
        Image.new("RGB", (16, 16), (255, 0, row) if row % 3 else (0, row, 255)).save(tmp_path / f"{row:02d}.png")
        lines.append(f"{row:02d},{'red' if row % 3 else 'blue'}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    np.save(tmp_path / "bank.npy", bank)
    words = f"--root {tmp_path} --labels {tmp_path}/labels.csv --bank {tmp_path}/bank.npy --id-pattern %s.png --workers 0"
    more = f"--backbone test_resnet --weights random --image-size 32 --cache-dir {tmp_path}/cache --seeds 2 --strength 1"
    monkeypatch.setattr("sys.argv", ["probe_features.py", *words.split(), *more.split()])
    load_script("probe_features").main()
    figures = told(capsys.readouterr().out)
    assert figures["accuracy"] == [1.0, 1.0]
    assert figures["accuracy_bank"] == [0.6667, 0.6667]  # nothing to see there: the larger class
    assert figures["difference"] == pytest.approx(0.3333, abs=1e-4)


def test_a_foreign_classifier_scores_the_kinds() -> None:
    script = load_script("make_banks")
    features = np.random.default_rng(0).random((5, 1280), dtype=np.float32)
    scores = script.names_scores(features)
    assert scores.shape == (5, len(script.KINDS))
    assert np.isfinite(scores).all()
    taken = [number for spans in script.KINDS.values() for first, last in spans for number in range(first, last + 1)]
    assert len(set(taken)) == len(taken)  # no class of ImageNet is of two kinds
    assert max(taken) < 1000
