"""Names of workers: one rule for files, settings and the page."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable

from lightning_annot.names import clean, is_allowed
from lightning_annot.types import AnnotError

logger = logging.getLogger(__name__)

LONGEST_NAME = 100
RULE = f"give 1 to {LONGEST_NAME} characters, without line ends and other control characters"
_SHOWN = 5


def is_worker_name(name: str) -> bool:
    """Whether ``name`` may be a worker's: allowed, not too long, and without white space around it."""
    return is_allowed(name) and len(name) <= LONGEST_NAME and name == clean(name)


def worker_name(written: str) -> str:
    """The name that somebody wrote, without white space around it.

    Raises:
        AnnotError: It is empty, too long, or holds control characters.
    """
    name = clean(written)
    if not is_worker_name(name):
        raise AnnotError(f"{written[:LONGEST_NAME]!r} is no name for a worker; {RULE}.")
    return name


def worker_names(written: Iterable[str]) -> list[str]:
    """The names of a list of workers, each once a list.

    Raises:
        AnnotError: One is no name, or two are the same but for white space around them.
    """
    given = list(written)
    names = [worker_name(str(name)) for name in given]
    if len({*names}) < len(names):
        raise AnnotError(f"workers are {given}; give names that differ, white space around them apart")
    warn_of_case(names)
    return names


def warn_of_case(names: Iterable[str], new: Iterable[str] | None = None, what: str = "workers") -> None:
    """Warn in one line of names that differ by nothing but case; of those alone that are ``new``, if given."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in sorted({*names}):
        alike[name.casefold()].append(name)
    fresh = None if new is None else {*new}
    groups = [group for group in alike.values() if len(group) > 1 and (fresh is None or not fresh.isdisjoint(group))]
    if groups:
        shown = "; ".join(" and ".join(map(repr, group)) for group in groups[:_SHOWN])
        more = "; ..." if len(groups) > _SHOWN else ""
        count = "two" if len(groups[0]) == 2 else "several"
        logger.warning("%s %s%s differ only by case and count as %s", what, shown, more, count)
