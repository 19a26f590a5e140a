"""Images of data sets that libraries ship or download: torchvision's, and scikit-learn's handwritten digits."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lightning_annot.data.digests import content_digest
from lightning_annot.data.files import FileStore
from lightning_annot.data.images import Images, first_few
from lightning_annot.data.listing import about_splits
from lightning_annot.data.network import in_short, is_offline
from lightning_annot.data.places import Fence, refuse_outside
from lightning_annot.types import AnnotError

if TYPE_CHECKING:  # both are loaded where they are used: a folder of images needs neither, and each takes a second or more
    from torchvision.datasets import VisionDataset

TORCHVISION = "torchvision:"  # before the name of a data set, as a root
DOWNLOAD_DIR = "data"
DIGIT_SIZE = 64  # pixels a side of an opened digit: eight times the original, large enough for a person to read


class DatasetStore:
    """Images of a torchvision data set by index; digests are of the decoded pixels."""

    def __init__(self, dataset: VisionDataset) -> None:
        self._dataset = dataset

    def read(self, index: int) -> Image.Image:
        """The image of the data set's (image, target) pair."""
        image: Image.Image = self._dataset[index][0]
        return image

    def digests(self, indices: Sequence[int]) -> list[str]:
        """Digests of mode, size and pixels."""
        return [self._digest(index) for index in indices]

    def _digest(self, index: int) -> str:
        try:
            image = self.read(index)
            return content_digest(f"{image.mode} {image.size}".encode(), image.tobytes())
        except OSError:  # opening it for use fails too, and that is where it is reported
            return content_digest(b"unreadable", str(index).encode())


class DigitStore:
    """scikit-learn's digits by index, (N, 8, 8) uint8 in 0..16."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self._pixels = pixels

    def read(self, index: int) -> Image.Image:
        """The digit, white on black, enlarged."""
        image = Image.fromarray((self._pixels[index].astype(np.uint16) * 255 // 16).astype(np.uint8))
        return image.resize((DIGIT_SIZE, DIGIT_SIZE), Image.Resampling.BICUBIC)

    def digests(self, indices: Sequence[int]) -> list[str]:
        """Digests of the 64 pixels."""
        return [content_digest(self._pixels[index].tobytes()) for index in indices]


def digits_source() -> Images:
    """scikit-learn's 1,797 handwritten digits: ids ``"0"`` to ``"1796"``, labels ``"0"`` to ``"9"``."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    ids = [str(row) for row in range(len(digits.target))]
    labels = dict(zip(ids, map(str, digits.target.tolist()), strict=True))
    return Images(ids, [f"digits/{name}" for name in ids], labels, DigitStore(digits.images.astype(np.uint8)))


def digits_features() -> NDArray[np.float32]:
    """Pixels of ``digits_source`` as features in [0, 1], (1797, 64) float32."""
    from sklearn.datasets import load_digits

    pixels: NDArray[np.float32] = (load_digits().data / 16.0).astype(np.float32)
    return pixels


def torchvision_source(
    name: str,
    root: str | os.PathLike[str],
    split: str = "train",
    download: bool = True,
    allow_outside: bool = False,
    **options: Any,
) -> Images:
    """A classification data set of ``torchvision.datasets`` by class name; ids are ``str(index)``.

    ``split`` and ``download`` go to the class as it names them, ``options`` as they are. Labels are class names where
    the data set has them (numbers where it has targets but no names), else None.
    """
    from torchvision.datasets import DatasetFolder

    dataset = _build(name, os.fspath(root), split, download, options)
    if len(dataset) == 0 or not isinstance(dataset[0], tuple) or not isinstance(dataset[0][0], Image.Image):
        raise AnnotError(f"torchvision's {name} gives no (image, target) pairs; choose a classification data set")
    ids = [str(index) for index in range(len(dataset))]
    paths, store = [f"{name}/{split}/{index}" for index in ids], DatasetStore(dataset)
    if isinstance(dataset, DatasetFolder):  # plain files: their digests are cached and cost no decoding
        paths, labels = [path for path, _ in dataset.samples], _labels(dataset, ids)
        if not allow_outside:
            fence = Fence(root)
            refuse_outside(root, [path for path in paths if not fence.holds(path)])
        return Images(ids, paths, labels, FileStore(paths), None, None, about_splits(f"torchvision's {name}", labels))
    return Images(ids, paths, _labels(dataset, ids), store)


def is_downloaded(name: str) -> bool:
    """Whether torchvision's data set ``name``, which there is, is where ``open_source`` looks for it; downloads nothing."""
    _kind(name)
    try:
        _build(name, DOWNLOAD_DIR, "train", False, {})
    except AnnotError:
        return False
    return True


def _build(name: str, root: str, split: str, download: bool, options: dict[str, Any]) -> VisionDataset:
    kind = _kind(name)
    arguments = _arguments(kind, root, split, download) | options
    try:
        return kind(**arguments)
    except (OSError, RuntimeError, TypeError, ValueError, ImportError) as error:
        if is_offline(error):
            raise AnnotError(
                f"torchvision's {name} could not be downloaded (no network: {in_short(error)}); connect, or copy its files to "
                f"{root} from a machine that has them, or give data.root a folder, a zip or a manifest"
            ) from error
        raise AnnotError(
            f"torchvision's {name} cannot be had with {arguments} ({in_short(error)}). "
            "Check the split and the network, or put the files that torchvision expects into the root"
        ) from error


def _kind(name: str) -> type[VisionDataset]:
    """The class of that name."""
    import torchvision
    from torchvision.datasets import VisionDataset

    kind = getattr(torchvision.datasets, name, None)
    if not (inspect.isclass(kind) and issubclass(kind, VisionDataset)):
        known = [entry for entry in torchvision.datasets.__all__ if inspect.isclass(getattr(torchvision.datasets, entry))]
        near = get_close_matches(name, known, n=3) or known
        raise AnnotError(f"torchvision has no data set {name!r}; did you mean {first_few(near)}?")
    return kind


def _arguments(kind: type[VisionDataset], root: str, split: str, download: bool) -> dict[str, Any]:
    """What the class calls its root, split and download."""
    parameters = inspect.signature(kind).parameters
    open_ended = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    arguments: dict[str, Any] = {"root": root} if "root" in parameters else {}
    if "download" in parameters or ("split" in parameters and open_ended):
        arguments["download"] = download
    if "split" in parameters:
        arguments["split"] = split
    elif "train" in parameters and split in ("train", "test"):
        arguments["train"] = split == "train"
    elif split != "train":
        allowed = "train or test" if "train" in parameters else "train"
        raise AnnotError(f"torchvision's {kind.__name__} has no split {split!r}; allowed: {allowed}")
    return arguments


def _labels(dataset: VisionDataset, ids: Sequence[str]) -> dict[str, str] | None:
    """Class names by id, from the targets that most data sets keep beside images; negative targets are unknown."""
    attributes = ("targets", "labels", "_labels", "y")
    targets = next((values for name in attributes if (values := getattr(dataset, name, None)) is not None), None)
    if targets is None or len(targets) != len(ids):
        return None
    numbers = np.asarray(targets)
    if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer):
        return None
    classes = getattr(dataset, "classes", None)
    names = [str(number) for number in range(int(numbers.max()) + 1)] if classes is None else _class_names(classes)
    return {name: names[number] for name, number in zip(ids, numbers.tolist(), strict=True) if number >= 0}


def _class_names(classes: Sequence[str | tuple[str, ...]]) -> list[str]:
    """Names of classes; synonyms are joined and a name that occurs twice gets its number (ImageNet has both)."""
    names = [", ".join(entry) if isinstance(entry, tuple | list) else str(entry) for entry in classes]
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names)]
