"""How often a label of each confidence is right, as lists."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Reliability:
    """Reliability diagram as plain lists, one entry a bin, ready for JSON; empty bins have zeros.

    ``confidence`` and ``accuracy`` are means within the bin, ``count`` its number of items; bins are equally wide on
    [0, 1].
    """

    confidence: list[float]
    accuracy: list[float]
    count: list[int]

    @property
    def ece(self) -> float:
        """Expected calibration error: gaps between confidence and accuracy, weighted by items; nan without items."""
        total = sum(self.count)
        if total == 0:
            return float("nan")
        gaps = zip(self.count, self.confidence, self.accuracy, strict=True)
        return sum(n * abs(confidence - accuracy) for n, confidence, accuracy in gaps) / total

    def as_dict(self) -> dict[str, list[float] | list[int]]:
        """The three lists by name."""
        return asdict(self)
