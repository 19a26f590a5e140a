from __future__ import annotations

import io
import math
from typing import Any

import pytest
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.demos.boring_classes import BoringModel
from rich.console import Console

from lightning_annot.callbacks.progress import RoundProgress, describe_row


class Model(BoringModel):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("loss_shown", loss["loss"], prog_bar=True)
        return loss


class Rounds(Callback):
    """Does to the bar what the callback of the rounds does."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.progress_bar_callback.stage("training")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        bar = trainer.progress_bar_callback
        for stage in ("predicting", "inferring", "asking"):
            bar.stage(stage)
            if bar._display is not None:
                self.seen.append(bar._display.tasks[0].description)
        row = {"round": trainer.current_epoch, "annotations_per_item": 0.5, "finished_fraction": 0.25, "mean_risk": 0.1}
        bar.update_row({**row, "accuracy": math.nan, "seconds_train": 1.0, "seconds_ask": 0.25})


def trainer_with(bar: RoundProgress, *callbacks: Callback, **kwargs: Any) -> Trainer:
    quiet = {"enable_checkpointing": False, "logger": False, "enable_model_summary": False, "accelerator": "cpu"}
    limits = {"max_epochs": 3, "limit_train_batches": 4, "limit_val_batches": 2, "limit_predict_batches": 2}
    return Trainer(callbacks=[bar, *callbacks], **{**quiet, **limits, **kwargs})


def console_to(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, color_system=None)


def test_describe_row_leaves_out_what_is_unknown() -> None:
    row = {"annotations_per_item": 1.234, "finished_fraction": 0.5, "mean_risk": None, "accuracy": math.nan}
    assert describe_row(row) == "1.23 answers an item, 50.0% finished"


def test_log_file_gets_one_line_a_round() -> None:
    console = console_to(terminal=False)
    trainer_with(RoundProgress(console), Rounds()).fit(Model())
    lines = console.file.getvalue().splitlines()
    expected = "0.50 answers an item, 25.0% finished, mean risk 0.1000, 1.2 s"
    assert lines == [f"round {r}: {expected}" for r in range(3)]


def test_the_wait_for_people_is_told_apart() -> None:
    console = console_to(terminal=False)
    bar = RoundProgress(console)
    bar.update_row({"round": 3, "finished_fraction": 0.5, "seconds_train": 1.0, "seconds_wait": 90.0, "seconds_ask": 0.5})
    assert console.file.getvalue() == "round 3: 50.0% finished, 1.5 s and 90.0 s for people\n"


def test_terminal_gets_one_bar_for_all_rounds() -> None:
    console, rounds = console_to(terminal=True), Rounds()
    bar = RoundProgress(console)
    trainer_with(bar, rounds).fit(Model())
    assert rounds.seen[:3] == [f"round 0/2: {stage}" for stage in ("predicting", "inferring", "asking")]
    text = console.file.getvalue()
    assert "round 2/2" in text
    assert "mean risk 0.1000" in text
    assert "100 %" in text
    assert bar._display is None


def test_fit_without_rounds_counts_epochs() -> None:
    console = console_to(terminal=False)
    trainer_with(RoundProgress(console), max_epochs=2).fit(Model())
    lines = console.file.getvalue().splitlines()
    assert [line.split(" loss_shown ")[0] for line in lines] == ["epoch 0:", "epoch 1:"]


@pytest.mark.parametrize("what", ["validate", "test", "predict"])
def test_other_commands_have_a_simple_bar(what: str) -> None:
    console = console_to(terminal=True)
    trainer = trainer_with(RoundProgress(console), limit_test_batches=2)
    getattr(trainer, what)(Model(), **({} if what == "predict" else {"verbose": False}))
    text = console.file.getvalue()
    assert {"validate": "Validation", "test": "Testing", "predict": "Predicting"}[what] in text
    assert "100 %" in text


def test_bar_leaves_the_terminal_after_an_error() -> None:
    class Broken(Model):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise RuntimeError("broken")

    bar = RoundProgress(console_to(terminal=True))
    with pytest.raises(RuntimeError, match="broken"):
        trainer_with(bar).fit(Broken())
    assert bar._display is None


def test_disabled_bar_is_silent() -> None:
    console = console_to(terminal=True)
    bar = RoundProgress(console)
    bar.disable()
    trainer_with(bar, Rounds(), max_epochs=1).fit(Model())
    assert not bar.is_enabled
    assert console.file.getvalue() == ""
