"""Adaptation as one step of another run: from images to the file of the adapted backbone, going on after a kill."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from lightning_annot.backbones.adapt_settings import ADAPTED, AdaptSettings, StartSettings
from lightning_annot.backbones.adaptation import SelfSupervisedModule
from lightning_annot.backbones.freezing import FreezeLayers
from lightning_annot.backbones.ssl_data import KeptImages, ViewPairs, pair_loader, probe_loader, reading_processes
from lightning_annot.checkpoints import TRAINING, DurableCheckpointIO, fault
from lightning_annot.files import write_text, write_torch
from lightning_annot.stored import read_object
from lightning_annot.types import AnnotError, ImageSource

MADE_BY = "made_by.json"
_WEIGHTS = ("state_dict",)  # parts of the adapted backbone's file

logger = logging.getLogger(__name__)


def adapt(
    source: ImageSource,
    label: Tensor | None,
    start: StartSettings,
    settings: AdaptSettings,
    folder: Path,
    *,
    seed: int = 0,
    device: str = "auto",
    skip: bool = False,
    outer: Trainer | None = None,
) -> Path:
    """The file of the backbone adapted to ``source``, below ``folder``; made there unless it was before.

    ``label`` (N,): class of the prototypes, else -1; it serves ``val_knn`` alone. ``skip``: leave unreadable images out.
    The ``outer`` run's progress is shown and its records are kept for this stage too.
    The global generators stay as they were.
    """
    made_by = _made_by(source, start, settings, seed)
    done, last = folder / ADAPTED, folder / "last.ckpt"
    if done.is_file() or last.is_file():
        _compare(folder, made_by)
    if _is_whole(done, _WEIGHTS, "it is made anew"):
        return done
    if settings.patience is not None and label is None:
        raise AnnotError("adapt.patience given, which goes by the prototypes, and there are none; leave it out.")
    num_workers = reading_processes(len(source.ids), settings.num_workers)
    with isolate_rng(), _threads_beside(num_workers):
        torch.manual_seed(seed)
        module = SelfSupervisedModule(start, settings.method, settings.lr, seed=seed)
        kept = KeptImages(source, 2 * module.inputs.size, num_workers)
        pairs = ViewPairs(kept, settings.views, module.inputs, seed, skip)
        loader = pair_loader(pairs, settings.batch_size, num_workers)
        probe = None if label is None else probe_loader(source, label, module.transform)
        more = [FreezeLayers(list(settings.freeze))] if settings.freeze else []
        trainer = _trainer(settings, folder, device, more, outer)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / MADE_BY, json.dumps(made_by, indent=1) + "\n")
        trainer.fit(module, loader, probe, ckpt_path=last if _is_whole(last, TRAINING, "the adaptation starts anew") else None)
    weights = {name: tensor.cpu() for name, tensor in module.backbone.state_dict().items()}
    write_torch(done, {"state_dict": weights})
    return done


def required(folder: Path) -> Path:
    """The file of the adapted backbone below ``folder``, whatever images it was made from."""
    if not (folder / ADAPTED).is_file():
        raise AnnotError(f"{folder / ADAPTED} does not exist; run fit first, or name the run's annotation.output_dir.")
    if reason := adapted_fault(folder / ADAPTED):
        raise AnnotError(f"{folder / ADAPTED} is damaged: {reason}. Run fit, which makes it anew.")
    return folder / ADAPTED


def adapted_fault(path: Path) -> str | None:
    """Say why an adapted backbone cannot be used, or None if it can be."""
    return fault(path, _WEIGHTS)


def _is_whole(path: Path, parts: Sequence[str], consequence: str) -> bool:
    """Whether the file is there and can be used; a warning says so where it is damaged."""
    if not path.is_file():
        return False
    reason = fault(path, parts)
    if reason is not None:
        logger.warning("%s is damaged (%s); %s", path, reason, consequence)
    return reason is None


@contextmanager
def _threads_beside(processes: int) -> Iterator[None]:
    """Leave a core to each of ``processes``: torch's threads wait for each other, and spin on while one has no core."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before - processes))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _trainer(
    settings: AdaptSettings, folder: Path, device: str, callbacks: Sequence[Callback], outer: Trainer | None
) -> Trainer:
    bar = None if outer is None else outer.progress_bar_callback
    records = [] if outer is None else [logger for logger in outer.loggers if not isinstance(logger, CSVLogger)]
    kept = ModelCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    stop = [] if settings.patience is None else [EarlyStopping("val_knn", patience=settings.patience, mode="max")]
    kind, _, number = device.partition(":")
    return Trainer(
        accelerator=kind,
        devices=[int(number)] if number else 1,
        max_epochs=settings.epochs,
        precision=settings.precision,  # type: ignore[arg-type]
        logger=[CSVLogger(folder, name="logs"), *records],
        callbacks=[*([] if bar is None else [type(bar)()]), *callbacks, *stop, kept],
        plugins=DurableCheckpointIO(),
        enable_progress_bar=bar is not None,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=1,
    )


def _made_by(source: ImageSource, start: StartSettings, settings: AdaptSettings, seed: int) -> dict[str, Any]:
    """All that the adapted weights depend on, as JSON has it."""
    digests = source.digests()
    images = f"{len(digests)} images, {hashlib.blake2b(''.join(digests).encode(), digest_size=12).hexdigest()}"
    chosen = {name: value for name, value in asdict(settings).items() if name != "num_workers"}
    plain: dict[str, Any] = json.loads(json.dumps({"start": asdict(start), "settings": chosen, "seed": seed, "images": images}))
    return plain


def _compare(folder: Path, made_by: dict[str, Any]) -> None:
    """An AnnotError where ``folder`` holds what something else made."""
    path = folder / MADE_BY
    there = read_object(path, f"delete {folder} to adapt anew") if path.is_file() else {}
    other = [name for name in made_by if there.get(name) != made_by[name]]
    if other:
        raise AnnotError(
            f"{folder} holds a backbone adapted with other {', '.join(other)}: {[there.get(name) for name in other]} there, "
            f"{[made_by[name] for name in other]} now. Delete it to adapt anew, or give another annotation.output_dir."
        )
