"""One progress bar for a whole run; plain lines where the output is no terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text
from typing_extensions import override

_FACTS = (
    ("annotations_per_item", "{:.2f} answers an item"),
    ("finished_fraction", "{:.1%} finished"),
    ("mean_risk", "mean risk {:.4f}"),
    ("accuracy", "accuracy {:.1%}"),
)


def describe_row(row: Mapping[str, Any]) -> str:
    """The facts of a round's row in words, comma between them; what is absent, None or nan is left out."""
    known = {name: row[name] for name, _ in _FACTS if row.get(name) is not None and not math.isnan(row[name])}
    return ", ".join(text.format(known[name]) for name, text in _FACTS if name in known)


class _Display(Progress):
    """The bar, and below it one line with the facts of the last round."""

    facts = ""

    @override
    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.facts:
            yield Text(self.facts, style="dim", overflow="ellipsis", no_wrap=True)


class RoundProgress(ProgressBar):
    """Shows round, stage of the round and the last row during ``fit``; a simple bar otherwise.

    The callback that runs the rounds calls ``stage(name)`` when a stage begins (first at the start of ``fit``) and
    ``update_row(row)`` when a row of ``rounds.csv`` is complete. A ``fit`` without rounds is counted in epochs and
    shows the metrics logged with ``prog_bar=True``. Where the console is no terminal, every round (or epoch) is one
    printed line. Only the first process shows anything.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__()
        self._console = console or Console()
        self._display: _Display | None = None
        self._task = TaskID(0)
        self._enabled = True
        self._unit = "epoch"
        self._stage = "training"

    @property
    def is_enabled(self) -> bool:
        """Whether this process shows anything."""
        return self._enabled

    @override
    def disable(self) -> None:
        self._enabled = False
        self._stop()

    @override
    def enable(self) -> None:
        self._enabled = True

    @override
    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        if self._enabled:
            self._console.print(*args, **kwargs)

    def stage(self, name: str) -> None:
        """A stage of the round begins: training, predicting, inferring, asking, or any other short word."""
        self._unit, self._stage = "round", name
        self._describe()

    def wait(self, round_: int, text: str) -> None:
        """The round waits, one that a checkpoint left too; where nothing can be redrawn, it says so once."""
        waits, self._stage = self._stage.startswith(text[:7]), text
        if self._display is not None:
            self._describe()
        elif self._enabled and not waits:
            self._line(f"round {round_}: {text}")

    def update_row(self, row: Mapping[str, Any]) -> None:
        """Show the row of a round that is complete; keys as in ``rounds.csv``, ``round`` among them."""
        self._unit = "round"
        if self._display is not None:
            self._display.facts = describe_row(row)
            self._describe()
        elif self._enabled:
            self._line(f"round {row['round']}: {describe_row(row)}, {_time(row)}")

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epochs = trainer.max_epochs
        self._start(total=epochs if epochs is not None and epochs > 0 else None)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stage = "training"
        self._move(0)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._move(batch_idx + 1)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._unit == "round" or not self._enabled:
            return
        metrics = ", ".join(f"{name} {float(value):.4g}" for name, value in trainer.progress_bar_metrics.items())
        if self._display is not None:
            self._display.facts = metrics
        else:
            self._line(f"epoch {trainer.current_epoch}: {metrics or 'done'}")

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin_evaluation(trainer, self.validation_description, trainer.num_val_batches)

    @override
    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self._advance_evaluation(trainer)

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin_evaluation(trainer, self.test_description, trainer.num_test_batches)

    @override
    def on_test_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self._advance_evaluation(trainer)

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin_evaluation(trainer, self.predict_description, trainer.num_predict_batches)

    @override
    def on_predict_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self._advance_evaluation(trainer)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop()

    def _begin_evaluation(self, trainer: Trainer, name: str, batches: list[int | float] | int | float) -> None:
        if trainer.state.fn == "fit":  # validation inside a round is one of its stages
            self._stage = "validating"
            self._describe()
            return
        total = sum(batches) if isinstance(batches, list) else batches
        self._start(total=None if math.isinf(total) else total, description=name)

    def _advance_evaluation(self, trainer: Trainer) -> None:
        if self._display is not None and trainer.state.fn != "fit":
            self._display.advance(self._task)

    def _start(self, total: float | None, description: str = "") -> None:
        self._stop()
        if not (self._enabled and self._console.is_terminal):
            return
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
        self._display = _Display(*columns, TimeElapsedColumn(), console=self._console, refresh_per_second=5)
        self._task = self._display.add_task(description, total=total)
        self._display.start()

    def _stop(self) -> None:
        if self._display is not None:
            self._display.stop()
            self._display = None

    def _move(self, steps: int) -> None:
        """The bar counts rounds; the training steps of a round move it within the round."""
        if self._display is None:
            return
        total = self.total_train_batches
        share = steps / total if 0 < total < math.inf else 0.0
        self._display.update(self._task, completed=self.trainer.current_epoch + share)
        self._describe(f" {steps}/{total:g}" if share else "")

    def _describe(self, detail: str = "") -> None:
        if self._display is not None:
            most = self.trainer.max_epochs
            limit = f"/{most - 1}" if most is not None and most > 0 else ""
            text = f"{self._unit} {self.trainer.current_epoch}{limit}: {self._stage}{detail}"
            self._display.update(self._task, description=text)

    def _line(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)


def _time(row: Mapping[str, Any]) -> str:
    """The seconds of work, and those of the wait for people, if there was any."""
    seconds = {name: float(value) for name, value in row.items() if name.startswith("seconds_") and value is not None}
    waited = seconds.pop("seconds_wait", 0.0)
    return f"{sum(seconds.values()):.1f} s" + (f" and {waited:.1f} s for people" if waited else "")
