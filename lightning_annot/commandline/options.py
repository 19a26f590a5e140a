"""Options of the commands that have no Trainer: a fault is one line, with the option that was probably meant."""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NoReturn

from lightning_annot.types import AnnotError

_CHOICE = re.compile(r"argument (\S+): invalid choice: '(.*?)'")


class OptionParser(argparse.ArgumentParser):
    """Raises an AnnotError of one line where argparse prints its usage and exits; ``--help`` is argparse's."""

    _given: Sequence[str] = ()

    def parse_args(self, args: Sequence[str], namespace: argparse.Namespace | None = None) -> argparse.Namespace:  # type: ignore[override]
        """Parse ``args``."""
        self._given = args
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise the fault that ``message`` names, with what was probably meant."""
        known = self._option_string_actions
        unknown = [word.partition("=")[0] for word in self._given if word.startswith("--")]
        unknown = [word for word in unknown if not any(name.startswith(word) for name in known)]
        if unknown:  # argparse would rather tell of what it misses
            message = f"there is no option {unknown[0]}{did_you_mean(unknown[0], known)}"
        elif found := _CHOICE.match(message):
            action = next(a for a in self._actions if found[1] in (*a.option_strings, a.metavar, a.dest))
            message += did_you_mean(found[2], [str(choice) for choice in action.choices or ()])
        raise AnnotError(f"{message}; {self.prog} --help lists the options.")


def typed(argv: Sequence[str]) -> str:
    """The command line of this process as one would type it in a shell; ``argv`` as in ``sys.argv``."""
    program = Path(argv[0])
    if program.name == "__main__.py":
        words = ["python", "-m", program.parent.name]
    else:
        words = ["python", argv[0]] if program.suffix == ".py" else [program.name]
    return shlex.join([*words, *argv[1:]])


def did_you_mean(word: str, known: Collection[str]) -> str:
    """``", did you mean X?"`` for the most similar of the ``known`` words, empty where none is similar."""
    found = most_similar(word, known)
    return f", did you mean {found}?" if found else ""


def most_similar(word: str, known: Collection[str]) -> str | None:
    """The known word that is most like ``word``; of dotted words, the last parts have to be alike."""
    last = _last(word)
    near = [name for name in known if _likeness(last, _last(name)) >= 0.6]
    return max(near, key=lambda name: (_likeness(last, _last(name)), _likeness(word, name)), default=None)


def _likeness(word: str, other: str) -> float:
    return difflib.SequenceMatcher(None, word, other).ratio()


def _last(word: str) -> str:
    return word.removeprefix("--").rpartition(".")[2]
