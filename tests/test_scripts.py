"""The scripts do what they say; the README's pictures are those that ``make_pictures.py`` draws."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
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


@pytest.mark.parametrize("name", ["progress.png", "error.png", "report.png"])
def test_pictures_of_the_readme_are_small(name: str) -> None:
    check_picture(ROOT / "docs" / "pictures" / name)


def check_picture(path: Path) -> None:
    """A PNG that shows something, small enough for a page."""
    assert path.stat().st_size < MOST_BYTES
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) > 300
        assert len(image.convert("L").getcolors()) > 20
