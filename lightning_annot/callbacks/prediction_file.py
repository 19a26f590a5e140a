"""``predict`` leaves a CSV: ``task,label,confidence``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_annot.annotations.formats import write_table
from lightning_annot.types import AnnotError


class PredictionFile(Callback):
    """Writes ``predictions.csv`` below ``output_dir`` after ``predict`` on data with ``predict_ids`` and ``classes``."""

    def __init__(self, output_dir: str) -> None:
        self.path = Path(output_dir) / "predictions.csv"
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget earlier predictions."""
        self._parts = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep each item's best class and its probability."""
        row, probability = outputs
        confidence, label = probability.max(1)
        self._parts.append((row.cpu(), label.cpu(), confidence.cpu()))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file, in the order of the source."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        ids = getattr(data, "predict_ids", ())
        if not trainer.is_global_zero or not len(ids):
            return
        row, label, confidence = (torch.cat(parts) for parts in zip(*self._parts, strict=True))
        if data.classes is None or len(data.classes) <= int(label.max()):
            raise AnnotError("the checkpoint and the data do not say what the classes are called; give them as data.classes.")
        frame = pd.DataFrame(
            {
                "task": np.asarray(ids, dtype=object)[row.numpy()],
                "label": np.asarray(data.classes, dtype=object)[label.numpy()],
                "confidence": confidence.double().numpy().round(6),
            }
        )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_table(self.path, frame)
        print(f"{len(frame)} predictions are in {self.path}")
