"""What a user sees on the error stream is what a user can do something about; nothing is looked up in the network."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_runs import QUIET, ROOT, arguments, run
from PIL import Image

from lightning_annot.quiet import LINES, hush

SCRIPT = """
import sys
def watch(event, details):
    if event in ("socket.connect", "socket.getaddrinfo"):
        print("network:", event, details, file=sys.stderr)
sys.addaudithook(watch)
from lightning_annot.__main__ import main
for command in ("fit", "validate", "test", "predict"):
    print(command, file=sys.stderr)
    if main([command, *sys.argv[1:]]):
        print("failed", file=sys.stderr)
"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for n in range(16):
        path = tmp_path / "photos" / "ab"[n % 2] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 20, 3)).astype(np.uint8)).save(path)
    return tmp_path / "photos"


def test_the_commands_print_what_concerns_the_user(photos: Path, tmp_path: Path) -> None:
    """Images, adaptation, features, two rounds, and what comes after: everything that loads a library."""
    output = tmp_path / "run"
    settings = {
        **QUIET, "trainer.max_epochs": 2, "data.root": photos, "data.prototypes_per_class": 2, "data.batches.size": 8,
        "data.batches.steps": 2, "data.backbone.name": "small_resnet", "data.backbone.weights": "random",
        "data.backbone.image_size": 16, "data.backbone.cache_dir": tmp_path / "cache", "data.backbone.num_workers": 0,
        "data.adapt.epochs": 1, "data.adapt.batch_size": 4, "data.adapt.num_workers": 0, "annotation.output_dir": output,
        "annotation.workers": "lightning_annot.workers.simulated.StructuredWorkers", "annotation.sampling.per_round": 4,
    }  # fmt: skip
    command = [sys.executable, "-c", SCRIPT, *arguments(settings)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONWARNINGS": ""}, text=True, capture_output=True, check=False
    )
    last = output / "checkpoints" / "last.ckpt"
    restored = [f"Restoring states from the checkpoint path at {last}", f"Loaded model weights from the checkpoint at {last}"]
    stopped = "`Trainer.fit` stopped: `max_epochs={}` reached."
    assert done.stderr.splitlines() == [
        "fit", "Seed set to 0", stopped.format(1), stopped.format(2), "validate", "Seed set to 0", *restored,
        "test", "Seed set to 0", *restored, "predict", "Seed set to 0", *restored,
    ]  # fmt: skip
    assert "💡" not in done.stdout
    assert "litlogger" not in done.stdout


def passes(log: logging.Logger, message: str) -> bool:
    return bool(log.filter(log.makeRecord(log.name, logging.INFO, __file__, 1, message, (), None)))


def test_other_lines_of_the_same_loggers_are_shown() -> None:
    hush()
    hush()
    for name, beginnings in LINES.items():
        log = logging.getLogger(name)
        assert len(log.filters) == 1
        assert passes(log, "GPU available: True (cuda), used: False")
        assert not [beginning for beginning in beginnings if passes(log, f"{beginning} and more")]


def test_an_offline_log_of_weights_and_biases_is_silent_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_SILENT", raising=False)
    hush()
    assert os.environ["WANDB_SILENT"] == "true"
    monkeypatch.setenv("WANDB_SILENT", "false")
    hush()
    assert os.environ["WANDB_SILENT"] == "false"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_help_prints_nothing_on_the_error_stream() -> None:
    assert run("--version").stderr == ""
