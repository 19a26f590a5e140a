"""Checkpoints that a kill or a full disk cannot damage, and a check of those that something else has damaged."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins import TorchCheckpointIO
from typing_extensions import override

from lightning_annot.files import write_torch
from lightning_annot.types import AnnotError

WEIGHTS = ("pytorch-lightning_version", "state_dict", "loops")
"""Parts of every checkpoint that Lightning writes."""
TRAINING = (*WEIGHTS, "callbacks", "optimizer_states", "lr_schedulers")
"""Parts without which a training cannot go on."""


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes local checkpoints beside their place and moves them there once they are on disk, see ``files.replacing``.

    Lightning itself writes to the system's temporary folder; moved to another file system, that is a plain copy over the old
    checkpoint. Paths with a protocol, such as ``s3://``, are left to Lightning.

    Example:
        >>> trainer = Trainer(plugins=DurableCheckpointIO())  # doctest: +SKIP
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Replace ``path``; AnnotError where it cannot be written, and the old checkpoint stays."""
        if storage_options is not None or not is_local(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_torch(path, checkpoint)

    @override
    def load_checkpoint(
        self, path: str | Path, map_location: Any = lambda storage, _: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; AnnotError that names the file where it is damaged, or is none."""
        try:
            checkpoint = super().load_checkpoint(path, map_location, weights_only)
        except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
            reason = fault(Path(path), WEIGHTS, weights_only=weights_only) if is_local(path) else None
            raise AnnotError(unusable(path, reason or _first_line(error))) from error
        if reason := _lacking(checkpoint, WEIGHTS):
            raise AnnotError(unusable(path, reason))
        return checkpoint


def fault(path: Path, parts: Sequence[str], states: Sequence[str] = (), weights_only: bool | None = None) -> str | None:
    """Say why a checkpoint cannot be used, or None if it can be.

    Its bytes are compared with their checksums, which ``torch.load`` does not look at; tensors are not loaded.

    Args:
        path: The file.
        parts: Entries that it must have.
        states: Entries that ``callbacks`` in it must have.
        weights_only: As in ``torch.load``.

    Raises:
        AnnotError: There is no permission to read it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            return f"its part {damaged} is damaged"
        checkpoint = torch.load(path, map_location="cpu", weights_only=weights_only, mmap=True)
    except PermissionError as error:
        raise AnnotError(f"{error}; check the permissions, then repeat the same command") from error
    except pickle.UnpicklingError:
        return "it holds more than tensors and plain values"
    except Exception as error:  # zip, pickle, torch and the file system each have errors of their own
        return _first_line(error)
    return _lacking(checkpoint, parts) or _lacking(checkpoint.get("callbacks", {}), states)


def unusable(path: str | Path, reason: str) -> str:
    """The sentence for a checkpoint that cannot be used where there is no going on without it."""
    return (
        f"the checkpoint {path} cannot be used: {reason}. Run fit with the run's own settings, which makes it anew, or name "
        "another by --ckpt_path"
    )


def is_local(path: str | Path) -> bool:
    """Whether ``path`` is a file's, and not a web address or a place in a cloud."""
    return "://" not in str(path)


def _lacking(found: Any, wanted: Sequence[str]) -> str | None:
    """Say which of the ``wanted`` entries are not there, or None."""
    if not isinstance(found, Mapping):
        return f"it holds a {type(found).__name__}, and no training"
    missing = [name for name in wanted if name not in found]
    return f"it lacks {', '.join(missing)}" if missing else None


def _first_line(error: Exception) -> str:
    """What happened, without the pages that torch adds."""
    text = str(error).strip().splitlines()
    return text[0].rstrip(".") if text else type(error).__name__
