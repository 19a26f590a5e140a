"""A digest of all features of a run, by which a later start sees that they are still the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

_CHUNK_BYTES = 1 << 24

Origin = str | np.ndarray
"""What features are known by: themselves (N, D) where they came ready-made, else a text, see ``extraction``."""


def bank_digest(origins: Iterable[Origin]) -> str:
    """A short digest of the origins, in order.

    Ready-made features count by their bytes. Features that a backbone extracted count by the images and the backbone: the last
    bit of these may differ between devices.
    """
    found = hashlib.blake2b(digest_size=12)
    for origin in origins:
        if isinstance(origin, str):
            found.update(origin.encode())
            continue
        found.update(f"{origin.dtype.str} {origin.shape}".encode())
        rows = max(1, _CHUNK_BYTES // max(1, origin[:1].nbytes))
        for start in range(0, len(origin), rows):
            found.update(np.ascontiguousarray(origin[start : start + rows]).data)
    return found.hexdigest()


def extraction(backbone: Mapping[str, str], images: Sequence[str]) -> str:
    """The origin of features.

    Args:
        backbone: Everything else that the features depend on.
        images: The digest of each image, in order.
    """
    said = [f"{key}={value}" for key, value in sorted(backbone.items())]
    return f"extracted {hashlib.blake2b(chr(10).join([*said, *images]).encode(), digest_size=16).hexdigest()}"
