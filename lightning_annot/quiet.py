"""Suppress messages of libraries that users can neither cause nor fix."""

from __future__ import annotations

import logging
import os
import warnings

LINES = {
    "pytorch_lightning.utilities.rank_zero": (
        "💡 Tip: ",  # advertisements
        "TPU available: ",
        "GPU available: False",
        "Loading `train_dataloader` to estimate number of stepping batches.",
    ),
    "pytorch_lightning.accelerators.cuda": ("LOCAL_RANK: ",),
    "lightning_fabric.utilities.rank_zero": (
        "You are using a CUDA device",
    ),  # of a setting that the command line does not have
}
"""Beginnings of messages by the logger that they come from."""

WARNINGS = (
    "`isinstance.treespec, LeafSpec.` is deprecated",  # Lightning's use of a torch name
    ".*does not have many workers",  # batches need no reader processes
    "The dirpath has changed from",
    "Total length of `(list|DataLoader|CombinedLoader)` across ranks is zero",  # no prototypes to validate on
    "You defined a `validation_step` but have no `val_dataloader`",  # the same
    "LightningCLI's args parameter",  # they are the command line's, presets expanded
    "Found .* in eval mode at the start",  # a moving average, a frozen backbone
    "Checkpoint directory .* exists and is not empty",
)
"""Regular expressions that the beginnings of warnings match."""

ENVIRONMENT = {"HF_HUB_DISABLE_TELEMETRY": "1"}
"""Variables that are set where the user has not."""


class _Without(logging.Filter):
    """Drops the messages that begin with one of ``beginnings``."""

    def __init__(self, beginnings: tuple[str, ...]) -> None:
        super().__init__()
        self._beginnings = beginnings

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to show a message."""
        return not record.getMessage().startswith(self._beginnings)


def hush() -> None:
    """Suppress these messages from now on; idempotent."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        os.environ.setdefault("WANDB_SILENT", "true")
    for name, beginnings in LINES.items():
        log = logging.getLogger(name)
        if not any(isinstance(known, _Without) for known in log.filters):
            log.addFilter(_Without(beginnings))
    for pattern in WARNINGS:
        warnings.filterwarnings("ignore", pattern)
