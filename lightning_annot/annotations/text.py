"""Read text files in UTF-8, UTF-16, UTF-32 or cp1252."""

from __future__ import annotations

import json
import logging
import re
from functools import cache
from pathlib import Path

from lightning_annot.types import AnnotError

logger = logging.getLogger(__name__)

UTF_8, WESTERN = "utf-8", "cp1252"
_RIVALS = ["cp1252", "cp1250", "cp1251", "cp1253"]  # encodings of Windows that the same bytes may be of
_ACCENTED = r"[^\W\d_a-zA-Z]"  # a letter outside ASCII
_ODD = re.compile(rf"{_ACCENTED}{{3}}|[a-zß-öø-ÿ](?=[À-ÖØ-ÞŠŽŸŒ]){_ACCENTED}")  # Cyrillic, or what a Macintosh wrote
_AROUND = 40  # characters of the word that a message shows on either side
_MARGIN = 0.2  # by how much a rival must read more like a language


def read_text(path: Path) -> tuple[str, str]:
    """Read a whole text file.

    UTF-8 comes first and is never guessed away. UTF-16 and UTF-32 are known by their byte order mark or by their zero bytes.
    Bytes that are none of these are read as cp1252, unless another encoding of Windows fits better.

    Returns:
        The text without its byte order mark, line ends as they are, and the name of the encoding.

    Raises:
        AnnotError: The file cannot be read, or its encoding is not clear.
    """
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise AnnotError(f"{path} cannot be read: {error}; check the path and the permissions") from error
    wide = json.detect_encoding(data)
    if not wide.startswith(UTF_8):
        try:
            return data.decode(wide), wide
        except UnicodeDecodeError as error:
            if wide in ("utf-16", "utf-32"):  # the file has their mark
                raise AnnotError(f"{path} is cut or damaged {wide} ({error.reason}); save it anew as UTF-8") from error
    try:
        return data.decode("utf-8-sig"), UTF_8
    except UnicodeDecodeError as error:
        return _western(path, data, error), WESTERN


@cache
def tell(line: str) -> None:
    """Log a line about how a file was read, once per process."""
    logger.warning("%s", line)


def _western(path: Path, data: bytes, error: UnicodeDecodeError) -> str:
    from charset_normalizer import from_bytes

    line = data.count(b"\n", 0, error.start) + 1
    place = f"{path}, line {line}"
    lenient = data.decode(UTF_8, errors="replace")
    if any(mark > "\x7f" and mark != "\ufffd" for mark in lenient):  # letters of cp1252 next to make UTF-8
        raise AnnotError(f"{place} is damaged UTF-8, or in another encoding than the rest ({error.reason}); save all as UTF-8")
    found = from_bytes(data, cp_isolation=_RIVALS)
    as_western = next((match for match in found if WESTERN in match.could_be_from_charset), None)
    best = found.best()
    if as_western is None or best is None or best.coherence > as_western.coherence + _MARGIN:
        guess = "" if best is None or best.encoding == WESTERN else f" (perhaps {best.encoding})"
        raise AnnotError(f"{place} is neither UTF-8 nor {WESTERN}{guess}; save the file as UTF-8")
    try:
        text = data.decode(WESTERN)
    except UnicodeDecodeError as other:
        raise AnnotError(f"{place} is neither UTF-8 nor {WESTERN}; save the file as UTF-8") from other
    if odd := _ODD.search(text):  # names alone are too little text to tell a language by
        line = text.count("\n", 0, odd.start()) + 1
        before = re.split(r"\W", text[max(0, odd.start() - _AROUND) : odd.start()])[-1]
        after = re.split(r"\W", text[odd.end() : odd.end() + _AROUND])[0]
        word = f"{before}{odd[0]}{after}"
        raise AnnotError(
            f"{path}, line {line} is not UTF-8, and {word!r} in {WESTERN}, which is no word; save the file as UTF-8"
        )
    return text
