"""The labelling page of a run in a process of its own, and people who answer on it over HTTP."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from lightning_annot.types import AnnotError

Labeller = Callable[[int], Awaitable[tuple[str, float]]]
"""Label and seconds for a question, by its number."""


class ServedPage:
    """``lightning-annot serve`` over the run in ``run``, at a free port.

    ``links`` by name, ``owner`` among them, and ``cookies``: what the links of those who were invited give.
    """

    def __init__(self, run: Path, names: Sequence[str], *options: str) -> None:
        command = [sys.executable, "-m", "lightning_annot", "serve", str(run), "--port", "0", *options]
        command += ["--invite", *names] * bool(names)
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        said = [self._process.stdout.readline().strip().partition(": ") for _ in range(len(names) + 1)]
        if not said[0][2].startswith("http"):
            raise AnnotError(f"the page did not start: {said[0]}")
        self.links = {name: link for name, _, link in said}
        self.address = self.links["owner"].partition("/o/")[0]
        self.cookies = {name: cookie_of(link) for name, link in self.links.items() if "/w/" in link}

    def __enter__(self) -> ServedPage:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait()


def cookie_of(link: str) -> str:
    """Open a link; what it gives, as a browser sends it from then on."""
    response = httpx.get(link, timeout=60)
    response.raise_for_status()
    return "; ".join(f"{name}={value}" for name, value in response.cookies.items())


class Visitor:
    """One person at the page, with the cookie of a personal link."""

    def __init__(self, http: httpx.AsyncClient, cookie: str) -> None:
        self._http, self._headers = http, {"cookie": cookie}

    async def answer_hit(self, labeller: Labeller, n: int = 10) -> int:
        """Ask for ``n`` questions, look at the image of each and answer it; returns how many there were."""
        lent = (await self._post("/api/next", {"n": n}))["questions"]
        for question in lent:
            image = await self._request("GET", f"/image/{question}")
            assert image.headers["content-type"].startswith("image/")
            label, seconds = await labeller(question)
            await self._post("/api/answer", {"question": question, "label": label, "seconds": seconds})
        return len(lent)

    async def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        return (await self._request("POST", path, json=body)).json()

    async def _request(self, method: str, path: str, **given: Any) -> httpx.Response:
        while True:
            try:
                response = await self._http.request(method, path, headers=self._headers, **given)
            except httpx.TransportError:  # a connection that was idle for long is closed; sending again changes nothing
                response = None
            if response is not None and response.status_code != 429:  # a person is not as quick as this
                response.raise_for_status()
                return response
            await asyncio.sleep(0.2)


def start_run(settings: Mapping[str, object], *, path: Path | None = None) -> subprocess.Popen[bytes]:
    """``lightning-annot fit`` in a process of its own, on one thread; modules in the folder ``path`` can be imported there."""
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if path is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(path), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "lightning_annot", "fit", *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
