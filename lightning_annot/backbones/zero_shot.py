"""Classes scored by their names alone: what an image-text model says before anybody has answered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from lightning_annot.backbones.image_text import text_embeddings

CHUNK = 8192


def class_scores(
    features: np.ndarray, name: str, weights: str, prompts: Sequence[str], classes: Sequence[str], seed: int = 0
) -> Tensor:
    """log p(class) (N, K) float32 of images with embeddings ``features`` (N, D) by the same model, for ``classes`` by name."""
    text, factor = text_embeddings(name, weights, prompts, classes, seed)
    out = torch.empty(len(features), len(classes))
    for start in range(0, len(features), CHUNK):
        rows = torch.from_numpy(np.array(features[start : start + CHUNK], dtype=np.float32))
        out[start : start + CHUNK] = (factor * normalize(rows, dim=1) @ text.T).log_softmax(1)
    return out
