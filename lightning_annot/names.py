"""Names of items, classes and workers, as people and file systems write them."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable

from lightning_annot.types import AnnotError

_SPACES = "\ufeff\u200b"  # a byte order mark and a zero-width space, which `str.strip` leaves
_SHOWN = 3  # names in a message
_FORBIDDEN = frozenset({"Cc", "Cs", "Zl", "Zp"})  # controls, lone surrogates, line and paragraph separators


def clean(name: str) -> str:
    """``name`` without leading and trailing white space: ``"anna "`` and ``"anna"`` are one worker."""
    return name.strip().strip(_SPACES).strip()


def is_allowed(name: str) -> bool:
    """Whether ``name`` is not empty and holds no control character, line end or lone surrogate.

    No-break spaces, joiners and other invisible characters are legal: file names have them.
    """
    return bool(name) and (name.isprintable() or not any(unicodedata.category(mark) in _FORBIDDEN for mark in name))


def refuse_unusable(what: str, names: Iterable[str]) -> None:
    """Raise AnnotError for names that a database, a CSV or the page cannot hold; ``what`` says in the plural what they name."""
    odd = sorted({ascii(name) for name in {*names} if not (isinstance(name, str) and is_allowed(name))})
    if odd:
        more = ", ..." if len(odd) > _SHOWN else ""
        raise AnnotError(
            f"{len(odd)} {what} are empty or hold a control character, a line end or a lone surrogate "
            f"({', '.join(odd[:_SHOWN])}{more}); rename them"
        )


class KnownNames:
    """Finds which of the ``known`` names a written one stands for.

    Args:
        known: The names that exist.
        ignore_case: Whether ``Bird`` may stand for ``bird``, as it may for classes.
    """

    def __init__(self, known: Iterable[str], ignore_case: bool = False) -> None:
        self._known = frozenset(known)
        self._ignore_case = ignore_case
        self._by_form: dict[str, str] | None = None

    def find(self, name: str) -> str:
        """The known name that equals ``name``, or else the only one that is alike; ``name`` itself where there is none.

        Alike are a composed and a decomposed form of the same text (``é`` is one character or two: NFC, NFD), names that differ
        by white space around them, and, where case is ignored, by case.
        """
        if name in self._known:
            return name
        if self._by_form is None:
            self._by_form = self._unique_forms()
        return self._by_form.get(self._form(name), name)

    def find_all(self, names: Collection[str]) -> dict[str, str]:
        """The known name of each of ``names``, by the name as written."""
        return {name: self.find(name) for name in {*names}}

    def _unique_forms(self) -> dict[str, str]:
        forms = {name: self._form(name) for name in self._known}
        count = Counter(forms.values())
        return {form: name for name, form in forms.items() if count[form] == 1}

    def _form(self, name: str) -> str:
        form = unicodedata.normalize("NFC", clean(name))
        return unicodedata.normalize("NFC", form.casefold()) if self._ignore_case else form
