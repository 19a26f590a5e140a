"""Errors that mean: there is no network, or it does not reach the server."""

from __future__ import annotations

from collections.abc import Iterator

# By name: hub clients have changed their HTTP library twice, and each library has errors of its own.
_NAMES = {
    "ConnectError",
    "ConnectionError",
    "ConnectTimeout",
    "LocalEntryNotFoundError",
    "NetworkError",
    "OfflineModeIsEnabled",
    "ProxyError",
    "TimeoutException",
    "TransportError",
    "URLError",
    "gaierror",
}
_SHOWN = 160  # characters


def is_offline(error: BaseException) -> bool:
    """Whether ``error``, or one that it came from, says that a server could not be reached."""
    return any(kind.__name__ in _NAMES for part in _chain(error) for kind in type(part).__mro__)


def in_short(error: BaseException) -> str:
    """The root of ``error`` in one line."""
    root = list(_chain(error))[-1]
    text = " ".join(str(root).split()).rstrip(".") or type(root).__name__
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    part: BaseException | None = error
    while part is not None and id(part) not in seen:
        seen.add(id(part))
        yield part
        part = part.__cause__ or (None if part.__suppress_context__ else part.__context__)
