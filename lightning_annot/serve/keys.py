"""Which key stands for which class."""

from __future__ import annotations

from collections.abc import Sequence

RESERVED = {"n", "u", "s", "e"}
"""Keys of "none of these", "unsure", "skip" and "examples"."""


def class_keys(names: Sequence[str]) -> list[str]:
    """One key for each class; empty where classes are found by typing instead.

    A name of one character is its own key, up to nine classes have the digits, more are found by typing.
    """
    short = [name.lower() for name in names]
    if all(len(name) == 1 and name.isalnum() for name in short) and len(set(short)) == len(short) and not RESERVED & set(short):
        return short
    return [str(i + 1) for i in range(len(names))] if len(names) <= 9 else []
