"""Label large image sets with as few human answers as possible, trained and resumed by PyTorch Lightning.

Heavy libraries load when one of the names below is first used, not on import.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "AnnotationDataModule": "lightning_annot.data.datamodule",
    "AnnotationLog": "lightning_annot.annotations.log",
    "AnnotationRound": "lightning_annot.callbacks.annotation_round",
    "Annotations": "lightning_annot.types",
    "AnnotError": "lightning_annot.types",
    "DurableCheckpointIO": "lightning_annot.checkpoints",
    "MixMatchModule": "lightning_annot.learner.module",
    "SoftLabels": "lightning_annot.data.soft_labels",
    "run_em": "lightning_annot.crowd.em",
    "run_tiered_em": "lightning_annot.crowd.tiers",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'lightning_annot' has no attribute {name!r}")
