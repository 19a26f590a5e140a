"""The vocabulary: settings and facts as frozen dataclasses. Imports nothing of ours.

Shapes are named alike everywhere: N items, K classes, W workers, A annotations, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

Kind = Literal["annotation", "gold", "audit"]
KINDS: tuple[Kind, ...] = ("annotation", "gold", "audit")

OTHER = "other"
"""The last class of a task with distractors: all that is of none of the named classes."""


class AnnotError(ValueError):
    """What came, what was allowed, what to do. Shown to the user without a traceback."""


@dataclass(frozen=True)
class Finding:
    """What a check has found in order.

    Args:
        text: What is there, in a few words.
        warnings: What the user should know all the same, and what to do about it.
    """

    text: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Question:
    """One item shown to one worker (or to anyone, ``worker=None``); ``id`` is 0 until the log has committed it."""

    item: str
    worker: str | None
    kind: Kind = "annotation"
    round: int = 0
    id: int = 0


@dataclass(frozen=True)
class Answer:
    """A worker's answer to a logged question; ``label=None`` is a skip (unsure)."""

    question: int
    worker: str
    label: str | None
    seconds: float | None = None
    source: str = ""


@dataclass(frozen=True)
class Annotations:
    """Labels given by workers, as indices. Skips are not among them.

    ``item``, ``worker``, ``label`` are (A,) int64 tensors with values in [0, N), [0, W), [0, K).
    """

    item: Tensor
    worker: Tensor
    label: Tensor

    def __len__(self) -> int:
        return int(self.item.numel())


@dataclass(frozen=True)
class Task:
    """What workers may know: items, classes, seed, and ``truth`` (item -> class name) for simulated workers alone.

    ``log_url`` opens the annotation log, for workers whose answers come in through it. ``names``: what people call the classes.
    """

    items: Sequence[str]
    classes: Sequence[str]
    seed: int
    output_dir: str
    paths: Mapping[str, str] | None = None
    truth: Mapping[str, str] | None = None
    log_url: str | None = None
    names: Sequence[str] | None = None


@runtime_checkable
class Learner(Protocol):
    """What a round needs of a model: out-of-fold probabilities, calibrated on prototypes or, without them, on answers."""

    def calibrate(self, x: Tensor, fold: Tensor, label: Tensor) -> float:
        """Fit the temperature on prototypes ``x`` (P, d), ``fold`` (P,), ``label`` (P,); returns it.

        Where classes have no prototype, ``label`` is (P, K): log p(what was answered | class).
        """

    def log_probability(self, x: Tensor, fold: Tensor) -> Tensor:
        """log p(y | x) (B, K) of rows ``x`` (B, d), each by the head of its own ``fold`` (B,)."""


class ImageSource(Protocol):
    """Images by row: ids, a path a person can find, content digests, pixels."""

    ids: Sequence[str]
    paths: Sequence[str]
    labels: Mapping[str, str] | None

    def open(self, row: int) -> Image:
        """The image as RGB; raises OSError when unreadable."""

    def digests(self) -> Sequence[str]:
        """One content digest an item, in row order."""
