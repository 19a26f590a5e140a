"""What every request passes before it reaches a page: size, kind and origin of what comes in, headers of what goes out."""

from __future__ import annotations

import ipaddress
import re
import time
from collections import OrderedDict
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LONGEST_PATH = 1000
_HOST = re.compile(r"(?P<name>[a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
HEADERS = {
    "content-security-policy": "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


@dataclass(frozen=True)
class Limits:
    """``body``: most bytes of a request. Requests a second, and at once: of each worker, and of each address of strangers."""

    body: int = 16_384
    worker_rate: float = 20.0
    worker_burst: int = 600  # a page of 300 classes shows as many examples
    stranger_rate: float = 1.0
    stranger_burst: int = 30


@dataclass(frozen=True)
class Hosts:
    """Host names under which the page is served, None: any; ``addresses``: also under any address in digits.

    A page of another site can make its own name lead to this machine, and would then be let through as ours.
    """

    names: frozenset[str] | None = None
    addresses: bool = False

    @classmethod
    def of(cls, host: str, base: str) -> Hosts:
        """Where it listens at ``host`` and people come by ``base``."""
        names = {host, urlsplit(base).hostname or host, "localhost", "127.0.0.1", "::1"}
        return cls(frozenset(name.lower() for name in names), addresses=host in ("", "0.0.0.0", "::"))

    def allow(self, given: str) -> bool:
        """Whether a Host header names this page."""
        if self.names is None:
            return True
        parts = _HOST.fullmatch(given.lower())
        if parts is None:
            return False
        name = parts["name"].strip("[]")
        return name in self.names or (self.addresses and _is_address(name))


def _host_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:  # a bracket that is not closed
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Buckets:
    """Each key may spend ``burst`` at once, and gets ``rate`` a second back. The keys used last are remembered."""

    _MOST = 10_000

    def __init__(self, rate: float, burst: int) -> None:
        self._rate, self._burst = rate, float(burst)
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def spend(self, key: str) -> bool:
        """Whether ``key`` had one left."""
        now = time.monotonic()
        left, since = self._left.pop(key, (self._burst, now))
        left = min(self._burst, left + self._rate * (now - since))
        self._left[key] = (left - 1 if left >= 1 else left, now)
        if len(self._left) > self._MOST:
            self._left.popitem(last=False)
        return left >= 1


class Guard:
    """ASGI middleware: refuses what no page of ours sends, and adds ``HEADERS`` to every answer.

    A POST must be small JSON. Browsers say where a POST comes from: another site's is refused, besides SameSite cookies and
    the JSON type, which a form of another site cannot send.
    """

    def __init__(self, app: ASGIApp, body: int, hosts: Hosts = Hosts()) -> None:
        self._app, self._body, self._hosts = app, body, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                there = {name for name, _ in message["headers"]}
                extra = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in there]
                if b"cache-control" not in there:
                    extra.append((b"cache-control", b"no-store"))
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        if (refusal := self._refusal(scope)) is not None:
            await _refuse(*refusal)(scope, receive, send_guarded)
            return
        if scope["method"] == "POST":
            body = await self._read(receive)
            if body is None:
                await _refuse(413, "too long")(scope, receive, send_guarded)
                return
            receive = _replay(body, receive)
        await self._app(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > LONGEST_PATH:
            return 414, "address too long"
        if not self._hosts.allow(headers.get(b"host", "")):
            return 421, "this page has another address"
        if scope["method"] != "POST":
            return None
        origin = headers.get(b"origin")
        if origin is not None and _host_of(origin) != headers.get(b"host"):
            return 403, "sent by another site"
        if headers.get(b"sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return 403, "sent by another site"
        if headers.get(b"content-type", "").partition(";")[0].strip().lower() != "application/json":
            return 415, "send JSON"
        length = headers.get(b"content-length", "0")
        if b"content-length" in headers and b"transfer-encoding" in headers:  # a proxy may go by the other
            return 400, "say the length once"
        return (413, "too long") if not length.isdecimal() or int(length) > self._body else None

    async def _read(self, receive: Receive) -> bytes | None:
        """The whole body; None if it is too long, which a length that was not told or is a lie could hide."""
        body = b""
        while True:
            message = await receive()
            part: bytes = message.get("body", b"")
            body += part
            if len(body) > self._body:
                return None
            if not message.get("more_body", False):
                return body


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _refuse(status: int, why: str) -> JSONResponse:
    return JSONResponse({"error": why}, status)
