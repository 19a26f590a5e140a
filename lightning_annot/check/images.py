"""A look at some of the images: their formats, and whether they open."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePath

from rich.progress import track

from lightning_annot.check.lines import Lines
from lightning_annot.data.images import Images, first_few

_MOST = 500
_MOST_SECONDS = 20.0
_THREADS = 8
_SHOWN_FORMATS = 5


def look_at_images(lines: Lines, source: Images, seed: int, skips: bool) -> Sequence[int]:
    """Open a random sample of the images, and say what cannot be read; ``skips``: ``fit`` leaves such images out.

    Returns:
        The rows that were drawn.
    """
    for note in source.notes:
        lines.warn("images", note)
    n = len(source.ids)
    sample = draw(n, seed)
    opened, unreadable = _open(lines, source, random.Random(seed).sample(sample, len(sample)))
    whole = "all" if opened == n else f"{opened:,} drawn at random"
    if not unreadable:
        lines.ok("images", f"{n:,} images{_formats(source.paths)}; {whole} were opened and can be read")
        return sample
    text = (
        f"{len(unreadable):,} of {n:,} images cannot be read, of {whole} that were opened ({first_few(unreadable)}); "
        "repair or remove them"
    )
    if skips:
        lines.warn("images", f"{text}; fit leaves them out")
    else:
        lines.problem("images", f"{text}, or leave such images out, counted, with --data.backbone.on_error skip")
    return sample


def draw(n: int, seed: int) -> list[int]:
    """Rows of a random sample of ``n`` images, in order."""
    return sorted(random.Random(seed).sample(range(n), min(n, _MOST)))


def _open(lines: Lines, source: Images, rows: Sequence[int]) -> tuple[int, list[str]]:
    """How many were opened in the time that there is, and the reasons for those that cannot be."""
    end = time.monotonic() + _MOST_SECONDS

    def look(row: int) -> str | None:
        if time.monotonic() > end:
            return None
        try:
            source.open(row)
        except OSError as error:
            return f"{source.ids[row]}: {str(error).removeprefix(f'{source.paths[row]}: ')}"
        return ""

    with ThreadPoolExecutor(_THREADS) as pool:
        quiet = not lines.console.is_terminal
        looks = track(pool.map(look, rows), "images", len(rows), console=lines.console, transient=True, disable=quiet)
        said = [found for found in looks if found is not None]
    return len(said), sorted(filter(None, said))


def _formats(paths: Sequence[str]) -> str:
    """Extensions with their number, the most frequent first; nothing where images are no files."""
    count = Counter(PurePath(path).suffix.lower().removeprefix(".") or "no extension" for path in paths).most_common()
    if count == [("no extension", len(paths))]:
        return ""
    more = [f"{len(count) - _SHOWN_FORMATS} others"] if len(count) > _SHOWN_FORMATS else []
    return f" ({', '.join([*(f'{name} {number:,}' for name, number in count[:_SHOWN_FORMATS]), *more])})"
