"""How long a round waits for people."""

from __future__ import annotations

from lightning_annot.types import AnnotError


class AwayError(Exception):
    """Where people answer cannot be reached, or cannot answer, now."""


class Waiting:
    """Waits until a round is full enough, or until its time is over and there is any answer.

    Args:
        until: ``all``, or the share of a round's answers to wait for, above 0 and up to 1.
        minutes: the most that a round waits, if at least one answer is there; None: for ever. Pauses do not count.
        poll_seconds: pause between two looks.
    """

    def __init__(self, until: str | float, minutes: float | None, poll_seconds: float) -> None:
        self._share = 1.0 if until == "all" else _number(until)
        if not 0 < self._share <= 1:
            raise AnnotError(f"workers.until {until} given; it must be 'all', or a share above 0 and up to 1, such as 0.8.")
        if minutes is not None and not minutes >= 0:
            raise AnnotError(f"workers.minutes {minutes} given; it must be 0 or more, or null to wait for ever.")
        if not poll_seconds > 0:
            raise AnnotError(f"workers.poll_seconds {poll_seconds} given; it must be above 0.")
        self._minutes, self._poll = minutes, poll_seconds
        self._paused_for = self._looked_at = 0.0

    def patience(self, arrived: int, asked: int, seconds: float, paused: bool = False) -> float:
        """Seconds until the next look, 0 to go on; ``arrived`` of ``asked`` answers are there ``seconds`` after the wait began.

        ``paused``: nobody can answer now, which has been so since the last look.
        """
        if seconds < self._looked_at:  # another round's wait has begun
            self._paused_for = self._looked_at = 0.0
        if paused:
            self._paused_for += seconds - self._looked_at
        self._looked_at = seconds
        full = arrived >= self._share * asked and (arrived > 0 or not asked)
        over = self._minutes is not None and arrived > 0 and seconds - self._paused_for >= 60 * self._minutes
        return 0.0 if full or over else self._poll


def _number(value: str | float) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise AnnotError(f"workers.until {value!r} given; it must be 'all', or a share such as 0.8.") from error
