"""Print the findings of ``check``, one per line, and record whether any is a problem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

from rich.console import Console
from rich.text import Text

from lightning_annot.types import AnnotError, Finding

Level = Literal["ok", "warning", "problem"]
_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}
Found = TypeVar("Found")


class Lines:
    """Prints one line for each finding, and remembers whether any is a problem."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.failed = False
        self._told: set[str] = set()

    def ok(self, subject: str, text: str) -> None:
        """Say what is in order."""
        self._print("ok", subject, text)

    def warn(self, subject: str, text: str) -> None:
        """Say what will not stop ``fit``, and what to do about it."""
        self._print("warning", subject, text)

    def problem(self, subject: str, text: str) -> None:
        """Say what would stop ``fit``, and what to do about it."""
        self.failed = True
        if text not in self._told:  # one fault may be met on several ways
            self._told.add(text)
            self._print("problem", subject, text)

    def attempt(self, subject: str, step: Callable[[], Found]) -> Found | None:
        """What ``step`` returns; None where it raises AnnotError, which is a problem."""
        try:
            return step()
        except AnnotError as error:
            self.problem(subject, str(error))
            return None

    def passes(self, subject: str, step: Callable[[], object]) -> bool:
        """Whether ``step`` raises no AnnotError, which is a problem."""
        try:
            step()
        except AnnotError as error:
            self.problem(subject, str(error))
            return False
        return True

    def look(self, subject: str, check: Callable[[], Finding | None]) -> None:
        """Say what a check finds."""
        found = self.attempt(subject, check)
        if found is not None:
            self.ok(subject, found.text)
            for text in found.warnings:
                self.warn(subject, text)

    def _print(self, level: Level, subject: str, text: str) -> None:
        line = Text.assemble((f"{level:8}", _STYLES[level]), f"{subject}: {' '.join(text.split())}")
        self.console.print(line, soft_wrap=True, highlight=False)
