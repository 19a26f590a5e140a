"""Pictures, riskiest items and label files of a finished run for Weights & Biases."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import WandbLogger
from typing_extensions import override

from lightning_annot.report.page import RISKIEST, riskiest_items
from lightning_annot.report.plots import figure_png, plot_confusion
from lightning_annot.report.run_files import RunFiles, read_run
from lightning_annot.report.thumbnails import Opener, decode, load_thumbnails

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run

X_AXIS = "annotations_per_item"
CURVES = (
    "paid_per_item",
    "finished_fraction",
    "mean_risk",
    "finished_risk",
    "accuracy",
    "top5_accuracy",
    "finished_precision",
    "ece",
    "learner_accuracy",
)
FILES = ("labels.csv", "workers.csv", "rounds.csv", "report.html")


class WandbRecords(Callback):
    """Logs what a run found; does nothing without a ``WandbLogger``.

    Curves get answers an item as their axis. At the end of ``fit`` it logs the confusion picture, the riskiest items and
    the label files (an artifact of type ``labels``). It reads the files of the run, so it comes after the callback that
    writes them.

    Args:
        output_dir: folder of the run.

    Attributes:
        thumbnails: item id -> image or None; without it the pictures that the report has kept are used.
    """

    def __init__(self, output_dir: str) -> None:
        super().__init__()
        self.output_dir = output_dir
        self.thumbnails: Opener | None = None

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (run := _wandb_run(trainer)) is not None:
            run.define_metric(X_AXIS)
            for name in CURVES:
                run.define_metric(name, step_metric=X_AXIS)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        run = _wandb_run(trainer)
        if run is None or not (Path(self.output_dir) / "labels.csv").is_file():
            return
        files = read_run(self.output_dir)
        run.log({"riskiest_items": self._riskiest(files), **_confusion(files)})
        _log_files(run, files.directory)

    def _riskiest(self, files: RunFiles) -> Any:
        """A ``wandb.Table`` of the riskiest items with their pictures."""
        import wandb

        items = riskiest_items(files, RISKIEST)
        pictures = load_thumbnails(files.directory, list(items["task"]), self.thumbnails)
        names = files.names
        table = wandb.Table(columns=["task", "image", "label", "confidence", "risk", "answers"])
        for row in items.itertuples():
            image = wandb.Image(decode(pictures[row.task])) if row.task in pictures else None
            table.add_data(row.task, image, names.get(row.label, row.label), row.confidence, row.risk, row.n_annotations)
        return table


def _wandb_run(trainer: Trainer) -> Run | None:
    """The run of the first Weights & Biases logger, on the first process alone."""
    if not trainer.is_global_zero:
        return None
    loggers = (logger for logger in trainer.loggers if isinstance(logger, WandbLogger))
    logger = next(loggers, None)
    return None if logger is None else logger.experiment


def _confusion(files: RunFiles) -> dict[str, Any]:
    if files.pooled is None:
        return {}
    import wandb

    picture = Image.open(io.BytesIO(figure_png(plot_confusion(files.pooled, list(files.names.values())))))
    return {"confusion": wandb.Image(picture, caption="row: true class, column: answer")}


def _log_files(run: Run, directory: Path) -> None:
    import wandb

    artifact = wandb.Artifact(f"labels-{run.id}", type="labels")
    for name in FILES:
        if (directory / name).is_file():
            artifact.add_file(str(directory / name), name=name)
    run.log_artifact(artifact)
