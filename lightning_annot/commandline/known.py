"""Settings by dotted name with their types, read from the signatures of the classes that take them."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Literal

PLACES = ("workers", "learner", "data", "backbones")  # packages that hold classes to be named by class_path


def settings_of(kind: type, prefix: str) -> dict[str, Any]:
    """The type of each setting of ``kind`` by its name below ``prefix``, those of nested groups after their group's."""
    found: dict[str, Any] = {}
    for name, hint in _parameters(kind).items():
        found[f"{prefix}.{name}"] = hint
        for group in members(hint):
            if is_dataclass(group) and isinstance(group, type):
                found |= settings_of(group, f"{prefix}.{name}")
    return found


def members(hint: Any) -> tuple[Any, ...]:
    """The types of a union; the type itself, where it is none."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(one for part in typing.get_args(hint) for one in members(part))
    return (hint,)


def class_of(hint: Any) -> type | None:
    """The base class of what a setting names by ``class_path``; None where it may be a mere text, or is of another type."""
    if str in members(hint):
        return None
    plain = (str, int, float, bool, type(None), list, dict, tuple, set)
    for part in members(hint):
        if isinstance(part, type) and part not in plain and typing.get_origin(part) is None and not is_dataclass(part):
            return part
    return None


def is_closed(hint: Any) -> bool:
    """Whether a setting has no names below it: it is a word, a number or a list of them."""
    plain = (str, int, float, bool, type(None), Path)
    return all(
        part in plain or typing.get_origin(part) is Literal or (typing.get_args(part) and all(map(is_closed, _entries(part))))
        for part in members(hint)
    )


def describe(hint: Any) -> str:
    """What a setting of this type may be, in words."""
    return " or ".join(dict.fromkeys(_word(part) for part in members(hint)))


def words_of(hint: Any) -> list[str]:
    """The words that a setting of this type may be, where its type lists them."""
    return [str(word) for part in members(hint) if typing.get_origin(part) is Literal for word in typing.get_args(part)]


def find_class(name: str) -> type | None:
    """The class of a dotted ``name``."""
    module, _, last = name.rpartition(".")
    try:
        found = getattr(import_module(module), last, None) if module else None
    except (ImportError, ValueError):
        return None
    return found if isinstance(found, type) else None


def subclasses(base: type) -> dict[str, type]:
    """The classes of this package, and those already loaded, that are a ``base``, by dotted name."""
    for place in PLACES:
        package = import_module(f"lightning_annot.{place}")
        for module in iter_modules(package.__path__, f"{package.__name__}."):
            with suppress(ImportError):  # a module of an extra that is not installed
                import_module(module.name)
    return {f"{kind.__module__}.{kind.__qualname__}": kind for kind in _below(base)}


def _below(base: type) -> Iterator[type]:
    below: list[type] = type.__subclasses__(base)
    for kind in below:
        if not inspect.isabstract(kind):
            yield kind
        yield from _below(kind)


def _parameters(kind: type) -> Mapping[str, Any]:
    """Type of each argument of ``kind``'s constructor, and of those of its bases that it passes on by ``**kwargs``."""
    found: dict[str, Any] = {}
    for owner in inspect.getmro(kind):
        make = owner.__dict__.get("__init__")
        if make is None or not callable(make):
            continue
        signature = inspect.signature(make).parameters
        hints = typing.get_type_hints(inspect.unwrap(make))
        wide = [name for name, one in signature.items() if one.kind is inspect.Parameter.VAR_KEYWORD]
        packed = {name for name, one in signature.items() if one.kind is inspect.Parameter.VAR_POSITIONAL}
        found = {n: hints.get(n, Any) for n in signature if n not in {"self", *wide, *packed}} | found
        if not wide:
            break
    return found


def _entries(part: Any) -> list[Any]:
    return [dict] if typing.get_origin(part) is dict else [one for one in typing.get_args(part) if one is not Ellipsis]


def _word(part: Any) -> str:
    origin = typing.get_origin(part)
    if origin is Literal:
        return ", ".join(str(word) for word in typing.get_args(part))
    if origin in (list, tuple, Sequence):
        inner = describe(next(iter(typing.get_args(part)), Any))
        return "a list such as '[cat,dog]'" if inner == "text" else f"a list, each {inner}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null", Any: "anything"}
    if part in names:
        return names[part]
    if is_dataclass(part) and isinstance(part, type):
        return f"settings, {{{', '.join(_parameters(part))}}}"
    return str(getattr(part, "__name__", part))
