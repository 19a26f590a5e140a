"""Who is who: personal links, cookies, and how often somebody may knock."""

from __future__ import annotations

import hmac
import time

from fastapi import HTTPException, Request, Response
from starlette.concurrency import run_in_threadpool

from lightning_annot.annotations.desk import Desk
from lightning_annot.serve.guard import Buckets, Limits

_DAYS_30 = 30 * 86_400
_LONGEST = 64  # characters of a secret
_CLOSED = "this link was closed; ask the owner for a new one"
_TRUSTED_FOR = 2.0  # seconds until a link that was revoked is surely closed


class Doors:
    """Lets workers and the owner in by the secrets of their links; strangers get a few tries an address.

    Cookies are named by the run: a browser sends those of all pages of a host to each, whatever their ports.
    """

    def __init__(self, desk: Desk, owner_token: str, limits: Limits) -> None:
        self._desk, self._owner_token = desk, owner_token
        self._worker_cookie, self._owner_cookie = f"annot_worker_{desk.run}", f"annot_owner_{desk.run}"
        self._workers = Buckets(limits.worker_rate, limits.worker_burst)
        self._strangers = Buckets(limits.stranger_rate, limits.stranger_burst)
        self._known: dict[str, tuple[str, float]] = {}

    async def worker(self, request: Request) -> str:
        """The worker whose cookie came."""
        return await self.worker_of(request, request.cookies.get(self._worker_cookie, ""))

    async def worker_of(self, request: Request, token: str) -> str:
        """The worker whose secret ``token`` is; raises 401 for any other, and 429 for who comes too often."""
        worker = await self._who(token)
        if worker is None:
            self._spend_a_try(request)
            closed = 0 < len(token) <= _LONGEST and await run_in_threadpool(self._desk.was_closed, token)
            raise HTTPException(401, _CLOSED if closed else "open your personal link first")
        if not self._workers.spend(worker):
            raise HTTPException(429, "too fast; wait a moment", {"retry-after": "1"})
        return worker

    def owner(self, request: Request, token: str | None = None) -> None:
        """Raises unless the owner's secret came: as ``token``, else as cookie."""
        given = request.cookies.get(self._owner_cookie, "") if token is None else token
        if not hmac.compare_digest(given.encode(), self._owner_token.encode()):
            self._spend_a_try(request)
            raise HTTPException(401, "open the owner's link first; the page prints a new one whenever it is started")

    def let_in(self, request: Request, response: Response, token: str, owner: bool = False) -> None:
        """Give the secret of a link as a cookie."""
        response.set_cookie(
            self._owner_cookie if owner else self._worker_cookie, token, max_age=_DAYS_30, httponly=True, samesite="strict",
            secure=request.url.scheme == "https",
        )  # fmt: skip

    def forget(self) -> None:
        """Links have changed."""
        self._known.clear()

    async def _who(self, token: str) -> str | None:
        if not token or len(token) > _LONGEST:
            return None
        worker, until = self._known.get(token, ("", 0.0))
        if time.monotonic() < until:
            return worker
        found = await run_in_threadpool(self._desk.who, token)
        if found is None:
            self._known.pop(token, None)
        else:
            self._known[token] = (found, time.monotonic() + _TRUSTED_FOR)
        return found

    def _spend_a_try(self, request: Request) -> None:
        """Raises 429 for who has none left."""
        address = request.client.host if request.client is not None else ""
        if not self._strangers.spend(address):
            raise HTTPException(429, "too many tries; wait a while", {"retry-after": "30"})
