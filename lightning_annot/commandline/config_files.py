"""Read configuration files once beforehand, to report a fault with its file and line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from lightning_annot.types import AnnotError


def named_files(args: Sequence[str]) -> Iterator[Path]:
    """The configuration files among the words of a command line."""
    for word, after in zip(args, (*args[1:], ""), strict=True):
        if word in ("--config", "-c"):
            yield Path(after)
        elif word.startswith("--config="):
            yield Path(word.removeprefix("--config="))


def check_files(args: Sequence[str]) -> None:
    """Read each configuration file that ``args`` name.

    Raises:
        AnnotError: One does not exist, is no UTF-8 or no YAML, or holds no settings.
    """
    for path in named_files(args):
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise AnnotError(f"--config {path}, line {line} is no UTF-8; save the file as UTF-8") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise AnnotError(f"--config {path} cannot be read: {reason}; check the path and the permissions") from error
        except RecursionError as error:
            raise AnnotError(
                f"--config {path} is nested too deeply; it needs settings such as data: {{root: photos}}"
            ) from error
        except yaml.YAMLError as error:
            raise AnnotError(f"--config {path}{_fault(error)}") from error
        if not isinstance(content, dict):
            found = "is empty" if content is None else f"holds {str(content)[:40]!r}"
            raise AnnotError(f"--config {path} {found}; it needs settings such as data: {{root: photos}}")


def _fault(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    place = "" if mark is None else f", line {mark.line + 1}"
    if "'\\t'" in problem:
        return f"{place} begins with a tab; YAML is indented by spaces"
    return f"{place} is no YAML: {problem}"
