"""A fault on the command line or in a configuration file in one line: the setting, what came, what is allowed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from lightning_annot.commandline.config_files import named_files
from lightning_annot.commandline.known import class_of, describe, find_class, is_closed, settings_of, subclasses, words_of
from lightning_annot.commandline.options import did_you_mean

Given = tuple[str, Any, str]
"""Dotted name without the words ``init_args`` and ``class_path``, value, and a file's name with a word before it."""

RENAMED = {"data.projection.standardise": "data.projection.scale; write standard for true and none for false"}
"""Settings of earlier versions, and what to write now."""


class UsageFault(Exception):
    """What jsonargparse says of the settings given."""


def explain(args: Sequence[str], message: str, roots: Mapping[str, type], others: Mapping[str, Any]) -> str:
    """The first fault among ``args`` and the configuration files they name; else jsonargparse's ``message``, shortened.

    Args:
        args: Words of the command line after the command.
        message: What jsonargparse says.
        roots: The class of each group: the one that the command line has by default.
        others: Type of each option that is in no group.
    """
    if (stray := _stray(args)) is not None:
        return f"{stray!r} given; settings are given as --group.key value"
    given = [*_of_files(args), *_of_words(args)]
    known = {**others, **roots}
    for name, kind in roots.items():
        known |= settings_of(kind, name)
    for name, value, where in given:
        base = class_of(known.get(name))
        if base is not None and isinstance(value, str) and not _is_plain(value):
            if (named := _class(base, value)) is None:
                classes = subclasses(base)
                return f"--{name} {value} given{where}; there is no such class{did_you_mean(value, classes)}"
            known = {key: hint for key, hint in known.items() if not key.startswith(f"{name}.")} | settings_of(named, name)
    for name, value, where in given:
        if (fault := _fault(name, value, where, known)) is not None:
            return fault
    return shortened(message)


def shortened(message: str) -> str:
    """jsonargparse's ``message`` in one line, without what concerns its own types."""
    lines = [line.strip(" -") for line in message.splitlines()]
    lines = [line for line in lines if line and "NestedArg" not in line and not line.startswith("Given value type")]
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", " ".join(lines))


def _fault(name: str, value: Any, where: str, known: Mapping[str, Any]) -> str | None:
    if name not in known:
        return _unknown(name, where, known)
    hint = known[name]
    if isinstance(value, Mapping) or class_of(hint) is not None or _is_valid(hint, value):
        return None
    meant = did_you_mean(str(value), words_of(hint))
    return f"--{name} {_shown(value)} given{where}{meant.rstrip('?')}; allowed is {describe(hint)}"


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value) or "''"


def _unknown(name: str, where: str, known: Mapping[str, Any]) -> str | None:
    if name in RENAMED:
        return f"--{name} given{where}; it is now --{RENAMED[name]}"
    parts = name.split(".")
    above = next((".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1) if ".".join(parts[:n]) in known), None)
    if above is not None and not any(key.startswith(f"{above}.") for key in known):
        base = class_of(known[above])
        if base is not None:
            return (
                f"--{name} given{where} without a class; name it first, as in --{above} {next(iter(subclasses(base)), 'CLASS')}"
            )
        if not is_closed(known[above]):
            return None
    meant = did_you_mean(name, known)
    return f"there is no setting --{name}{where}{meant.replace('did you mean ', 'did you mean --')}"


def _is_valid(hint: Any, value: Any) -> bool:
    if isinstance(value, str) and "${" in value:  # stands for another setting's value
        return True
    parser = ArgumentParser(exit_on_error=False, parser_mode="omegaconf")
    parser.add_argument("--value", type=hint)
    try:
        if isinstance(value, str):
            parser.parse_args([f"--value={value}"])
        else:
            parser.parse_object({"value": value})
    except ArgumentError:
        return False
    return True


def _is_plain(value: str) -> bool:
    """Whether a value names no class: null, true, settings in braces, a file of settings."""
    return not re.fullmatch(r"[A-Za-z_][\w.]*", value) or value.lower() in ("null", "true", "false") or Path(value).is_file()


def _class(base: type, name: str) -> type | None:
    if "." in name:
        return find_class(name)
    return next((kind for dotted, kind in subclasses(base).items() if dotted.endswith(f".{name}")), None)


def _stray(args: Sequence[str]) -> str | None:
    """The first word that is neither an option nor the value of one."""
    for before, word in zip(("", *args), args, strict=False):
        if not word.startswith("-") and (not before.startswith("-") or "=" in before):
            return word
    return None


def _of_words(args: Sequence[str]) -> Iterator[Given]:
    """Settings among the words of the command line."""
    for word, after in zip(args, (*args, "")[1:], strict=True):
        name, equals, value = word[2:].partition("=")
        if word.startswith("--") and name not in ("config", "help") and not name.startswith("print_"):
            text = value if equals else "" if after.startswith("--") else after
            group = _braces(text)
            if group is not None:
                yield from _of_mapping(group, _plain(name), "")
            else:
                yield _plain(name.removesuffix("+")), [text] if name.endswith("+") else text, ""


def _braces(text: str) -> Mapping[Any, Any] | None:
    """The settings of a group that is given in braces; None for any other value."""
    if not text.startswith("{"):
        return None
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError:
        return None  # jsonargparse's message says where
    return content if isinstance(content, Mapping) and content else None


def _of_files(args: Sequence[str]) -> Iterator[Given]:
    """Settings in the configuration files that the command line names."""
    for path in named_files(args):
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, yaml.YAMLError):
            continue  # jsonargparse's message names the file
        if isinstance(content, Mapping):
            yield from _of_mapping(content, "", f" in {path}")


def _of_mapping(node: Mapping[Any, Any], prefix: str, where: str) -> Iterator[Given]:
    for key, value in node.items():
        if key == "dict_kwargs":
            continue
        name = _plain(f"{prefix}.{key}" if prefix else str(key))
        if isinstance(value, Mapping):
            yield from _of_mapping(value, name, where)
        else:
            yield name, value, where


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in ("init_args", "class_path"))
