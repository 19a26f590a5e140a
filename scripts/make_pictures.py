"""The README's pictures from a real run of configs/digits.yaml, into docs/pictures.

    python scripts/make_pictures.py                        # runs first, about a minute and a half on 2 cores
    python scripts/make_pictures.py --run checkpoints/digits   # draws a run that is there already

The report's picture needs Chromium or Chrome; without one the picture that is there stays as it is, and a line says so.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from lightning_annot.report.plots import figure_png, plot_error, plot_quality
from lightning_annot.report.run_files import read_run

ROOT = Path(__file__).resolve().parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WINDOW = (1100, 1245)  # of the report's picture, in pixels
COLOURS = 128  # of each picture's palette, which keeps the files small


def run_digits(folder: Path) -> Path:
    """Annotate the digits as the README's first command does, in a process of its own; returns the run's folder."""
    command = [sys.executable, "-m", "lightning_annot", "fit", "--config", str(ROOT / "configs" / "digits.yaml")]
    subprocess.run([*command, "--annotation.output_dir", str(folder)], check=True)
    return folder


def draw_curves(run_dir: Path, pictures: Path) -> list[Path]:
    """``progress.png`` and ``error.png``: what the answers bought, and the error believed beside the true one."""
    rounds = read_run(run_dir).rounds
    figures = {"progress.png": plot_quality(rounds), "error.png": plot_error(rounds)}
    return [save(Image.open(io.BytesIO(figure_png(figure))), pictures / name) for name, figure in figures.items()]


def draw_report(run_dir: Path, picture: Path, browser: str) -> Path:
    """The top of the run's ``report.html`` as ``browser`` shows it."""
    with tempfile.TemporaryDirectory() as scratch:
        shot = Path(scratch) / "report.png"
        options = [f"--screenshot={shot}", f"--window-size={WINDOW[0]},{WINDOW[1]}", "--hide-scrollbars", "--headless"]
        options += ["--disable-gpu", f"--user-data-dir={scratch}/profile"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            options.append("--no-sandbox")  # Chromium refuses to start for root otherwise; the page is our own
        page = (run_dir / "report.html").resolve().as_uri()
        subprocess.run([browser, *options, page], check=True, capture_output=True, timeout=120)
        return save(Image.open(shot), picture)


def save(image: Image.Image, path: Path) -> Path:
    """Write a PNG with a palette of few colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.convert("RGB").quantize(COLOURS).save(path, optimize=True)
    return path


def find_browser() -> str | None:
    """The first browser of ``BROWSERS`` that is installed."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


def main(argv: list[str] | None = None) -> int:
    """Draw all pictures and print their paths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a finished run to draw, instead of running anew")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures", help="folder of the pictures")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        run_dir = given.run or run_digits(Path(scratch) / "digits")
        written = draw_curves(run_dir, given.out)
        browser = find_browser()
        if browser is None:
            print(f"no browser ({', '.join(BROWSERS)}) found: report.png is left as it is", file=sys.stderr)
        else:
            written.append(draw_report(run_dir, given.out / "report.png", browser))
    for path in written:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
