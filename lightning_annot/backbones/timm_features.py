"""Extract features of images with a frozen timm model into a feature bank."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_annot.backbones.timm_models import BackboneSpec, build_backbone, weights_digest
from lightning_annot.backbones.transforms import Transform
from lightning_annot.data.bank_digest import extraction
from lightning_annot.data.decode import DECODING
from lightning_annot.data.features import FeatureBank
from lightning_annot.data.images import first_few
from lightning_annot.data.ranks import ALONE, Ranks
from lightning_annot.types import AnnotError, ImageSource

__all__ = ["BackboneSpec", "FeatureSet", "build_backbone", "extract"]

OnError = Literal["raise", "skip"]
Told = Mapping[str, "str | int | float"]

_SMALL = 512  # images; below this, starting worker processes takes longer than they save


@dataclass(frozen=True)
class FeatureSet:
    """``features`` (N, D) float16 of the images ``ids`` (N); ``unreadable`` are the ids that were left out.

    ``told``: what was done with what, as plain values for a run's records. ``origin``: what the features are known by, see
    ``data/bank_digest.py``.
    """

    features: NDArray[np.float16]
    ids: tuple[str, ...]
    unreadable: tuple[str, ...] = ()
    told: Told = field(default_factory=dict)
    origin: str = ""


class _Batch(NamedTuple):  # a tuple, so that the loader pins its images
    """Rows that were read with their ``images`` (B, 3, H, W), and rows that were not with the reason."""

    rows: list[int]
    images: Tensor | None
    failed: list[tuple[int, str]]


def extract(
    source: ImageSource,
    spec: BackboneSpec,
    cache_dir: str | os.PathLike[str],
    batch_size: int = 64,
    device: str = "auto",
    num_workers: int | None = None,
    on_error: OnError = "raise",
    progress: bool = True,
    amp: bool = False,
    flush_seconds: float = 5.0,
    ranks: Ranks = ALONE,
) -> FeatureSet:
    """Features of all images, in the order of ``source``; those that the bank below ``cache_dir`` has are not redone.

    ``num_workers`` reading processes (default: by the machine and the number of images; 0 reads in this one); ``amp``
    computes in mixed precision on CUDA. A kill loses at most ``flush_seconds`` of work. Of several ``ranks`` each computes
    its part into its own shard of the bank; all return the same.

    With ``on_error="raise"`` an unreadable image stops the extraction at the end of its batch with an error that names
    what was found so far; all that was extracted stays in the bank, so the next start goes on from there. With
    ``"skip"`` unreadable images are left out and listed in ``unreadable``; they are tried again at each start, in case
    they were repaired.
    """
    check_options(batch_size, num_workers, on_error)
    if not flush_seconds >= 0:
        raise AnnotError(f"flush_seconds is {flush_seconds}; it must be 0 or more")
    target = resolve_device(device)
    model, transform = build_backbone(spec)
    amp = amp and target.type == "cuda"
    key = bank_key(spec, model, transform, amp)
    bank = FeatureBank.open(cache_dir, key, ranks.rank)
    with _spinner(progress):
        digests = source.digests()
    start, missing = time.monotonic(), bank.missing(digests)
    ranks.wait()  # else those that are late would not count what the others have done meanwhile
    if len(ranks.share(missing)):
        with bank.writing():  # looks again: whoever held the lock before may have done the work
            rows = ranks.share(bank.missing(digests)).tolist()
            loader = _loader(source, rows, transform, batch_size, num_workers, target, ranks.local)
            writer = _Writer(bank, source.ids, digests, flush_seconds)
            with writer, _progress_bar(progress) as bar:
                task = bar.add_task(f"features, 1 of {ranks.size} processes" if ranks.size > 1 else "features", total=len(rows))
                _fill(placed(model, target, amp), loader, writer, on_error, amp, bar, task)
    ranks.wait()
    done, seconds = int(bank.contains([digests[row] for row in missing]).sum()), time.monotonic() - start
    if progress and done:
        _say_speed(done, seconds, ranks.size)
    found = _read(bank, source.ids, digests, {name: value for name, value in key.items() if name != "precision"})
    size = int(transform(Image.new("RGB", (8, 8))).shape[-1])  # whatever library the model is from
    return replace(found, told=_told(found, spec, size, done, seconds))


def _told(found: FeatureSet, spec: BackboneSpec, size: int, computed: int, seconds: float) -> Told:
    """``computed`` images took ``seconds``; the other features were in the bank."""
    return {
        "backbone": spec.name,
        "weights": spec.weights,
        "image_size": size,
        "images": len(found.ids),
        "width": int(found.features.shape[1]),
        "unreadable": len(found.unreadable),
        "computed": computed,
        "seconds": seconds,
        "images_per_second": computed / max(seconds, 1e-9),
    }


def _read(bank: FeatureBank, ids: Sequence[str], digests: Sequence[str], backbone: Mapping[str, str]) -> FeatureSet:
    """What the bank has of these images."""
    present = bank.contains(digests)
    kept, lost = np.flatnonzero(present).tolist(), np.flatnonzero(~present).tolist()
    read = [digests[row] for row in kept]
    left_out = tuple(ids[row] for row in lost)
    return FeatureSet(bank.read(read), tuple(ids[row] for row in kept), left_out, origin=extraction(backbone, read))


@dataclass
class _Writer:
    """Gathers rows and appends them to the bank every ``flush_seconds``, and on leaving, whatever the reason."""

    bank: FeatureBank
    ids: Sequence[str]
    digests: Sequence[str]
    flush_seconds: float
    _rows: list[int] = field(default_factory=list)
    _blocks: list[NDArray[np.float16]] = field(default_factory=list)
    _flushed: float = field(default_factory=time.monotonic)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def add(self, rows: list[int], features: Tensor) -> None:
        """Take features (B, D) of the source's ``rows``; an AnnotError names those that float16 cannot hold."""
        if features.ndim != 2:
            raise AnnotError(
                f"the backbone gives shape {tuple(features.shape)} instead of pooled features (B, D); choose another"
            )
        block = features.half()
        bad = (~block.isfinite().all(1)).nonzero()[:, 0].tolist()
        if bad:
            names = first_few([self.ids[rows[i]] for i in bad])
            raise AnnotError(
                f"the features of {len(bad)} images are NaN, inf or beyond float16's 65504 ({names}); "
                "check the weights, turn mixed precision off or choose another backbone"
            )
        self._rows += rows
        self._blocks.append(block.cpu().numpy())
        if time.monotonic() - self._flushed >= self.flush_seconds:
            self.flush()

    def flush(self) -> None:
        """Append what was gathered."""
        if self._rows:
            self.bank.append([self.digests[row] for row in self._rows], np.concatenate(self._blocks))
        self._rows, self._blocks, self._flushed = [], [], time.monotonic()


def _fill(
    model: nn.Module, loader: DataLoader[Any], writer: _Writer, on_error: OnError, amp: bool, bar: Progress, task: Any
) -> None:
    """Run the model over the loader into the writer."""
    device = next(model.parameters()).device
    done = 0
    for batch in loader:
        if batch.images is not None:
            with torch.inference_mode(), torch.autocast("cuda", enabled=amp):
                features = model(batch.images.to(device, non_blocking=True))
            writer.add(batch.rows, features)
        done += len(batch.rows) + len(batch.failed)
        bar.update(task, completed=done)
        if batch.failed and on_error == "raise":
            reasons = first_few([f"{writer.ids[row]}: {reason}" for row, reason in batch.failed])
            raise AnnotError(
                f"{len(batch.failed)} images are unreadable among the first {done} looked at ({reasons}); "
                "what was extracted is kept. Repair or remove them and start again, "
                "or leave such images out, counted, with on_error=skip"
            )


class _Rows(Dataset[tuple[int, Tensor | None, str]]):
    """Chosen rows of a source as (row, input or None, reason why None)."""

    def __init__(self, source: ImageSource, rows: list[int], transform: Transform) -> None:
        self.source = source
        self.rows = rows
        self.transform = transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, Tensor | None, str]:
        row = self.rows[index]
        try:
            image = self.source.open(row)
        except OSError as error:
            return row, None, str(error)
        return row, self.transform(image), ""


def _collate(samples: list[tuple[int, Tensor | None, str]]) -> _Batch:
    read = [(row, image) for row, image, _ in samples if image is not None]
    failed = [(row, reason) for row, image, reason in samples if image is None]
    return _Batch([row for row, _ in read], torch.stack([image for _, image in read]) if read else None, failed)


def _loader(
    source: ImageSource,
    rows: list[int],
    transform: Transform,
    batch_size: int,
    num_workers: int | None,
    device: torch.device,
    processes: int,
) -> DataLoader[Any]:
    """Batches of ``rows``, in order; ``processes`` on this machine have a loader each."""
    if num_workers is None:
        num_workers = reading_processes(len(rows), processes)
    pin = device.type == "cuda"
    return DataLoader(_Rows(source, rows, transform), batch_size, num_workers=num_workers, collate_fn=_collate, pin_memory=pin)


def reading_processes(images: int, processes: int = 1) -> int:
    """How many read so many ``images``: half of the cores, since the other half computes, or feeds the GPU."""
    return 0 if images < _SMALL else min(4, (os.cpu_count() or 1) // 2 // processes)


def bank_key(spec: BackboneSpec, model: nn.Module, transform: Transform, amp: bool) -> dict[str, str]:
    """All that features depend on besides the image."""
    precision = "mixed" if amp else "float32"
    return {
        "backbone": spec.name,
        "weights": weights_digest(model),
        "transform": " ".join(repr(transform).split()),
        "precision": precision,
        "decoding": DECODING,
    }


def placed(model: nn.Module, device: torch.device, amp: bool) -> nn.Module:
    """The model on its device. Channels last make convolutions up to 1.5 times as fast on CPUs, and suit tensor cores."""
    model = model.to(device)
    return model.to(memory_format=torch.channels_last) if amp or device.type == "cpu" else model


def resolve_device(device: str) -> torch.device:
    """The device of that name, the GPU if there is one for ``auto``; AnnotError where it cannot be used."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise AnnotError(f"device {device!r} cannot be used here ({error}); allowed: auto, cpu, cuda, cuda:0, mps") from error
    return target


def check_options(batch_size: int, num_workers: int | None, on_error: str) -> None:
    """Raise AnnotError for options of ``extract`` that it does not take."""
    if on_error not in ("raise", "skip"):
        raise AnnotError(f"on_error is {on_error!r}; allowed: raise, skip")
    if batch_size < 1:
        raise AnnotError(f"batch_size is {batch_size}; it must be at least 1")
    if num_workers is not None and num_workers < 0:
        raise AnnotError(f"num_workers is {num_workers}; it must be 0 or more, or null to choose by the machine")


class _Rate(ProgressColumn):
    """Images a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("- images/s" if speed is None else f"{speed:.1f} images/s")


def _progress_bar(shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    return Progress(*columns, disable=not shown)


def _say_speed(images: int, seconds: float, processes: int) -> None:
    together = "" if processes == 1 else f" by {processes} processes"
    speed = images / max(seconds, 1e-9)
    Console().print(f"features of {images:,} images in {seconds:.1f} s{together}: {speed:.1f} images/s", highlight=False)


def _spinner(shown: bool) -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    spinner = Progress(*columns, transient=True, disable=not shown)
    spinner.add_task("looking for images that the bank has", total=None)
    return spinner
