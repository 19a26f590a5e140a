"""The page as a web application: FastAPI over the desk, without a session of its own, so that a kill loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from starlette.types import Lifespan

from lightning_annot.annotations.desk import Desk, Lending
from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.serve.clerk import Clerk
from lightning_annot.serve.doors import Doors
from lightning_annot.serve.guard import Guard, Hosts, Limits
from lightning_annot.serve.handout import HandOut
from lightning_annot.serve.later import Later
from lightning_annot.serve.pictures import Pictures
from lightning_annot.serve.templates import page
from lightning_annot.serve.worker_pages import WorkerPages
from lightning_annot.types import AnnotError

RETRY_SECONDS = 3  # in which a lock or a restart may have passed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PageSettings:
    """``hit``: images of one HIT."""

    hit: int = 10
    lending: Lending = field(default_factory=Lending)
    limits: Limits = field(default_factory=Limits)
    hosts: Hosts = field(default_factory=Hosts)

    def __post_init__(self) -> None:
        if not 1 <= self.hit <= 500:
            raise AnnotError(f"a HIT of {self.hit} images given; it must have 1 to 500.")


def make_app(directory: Path, log: AnnotationLog, owner_token: str, settings: PageSettings = PageSettings()) -> FastAPI:
    """The application for the run in ``directory``, whose facts are in ``log``; the run may begin later."""
    desk = Desk(log, settings.lending)
    clerk, pictures, doors = Clerk(desk), Pictures(directory), Doors(desk, owner_token, settings.limits)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(clerk.work()), asyncio.create_task(_get_ready(pictures, directory))]
        yield
        for task in tasks:
            task.cancel()
        pictures.close()

    def owners() -> FastAPI:
        from lightning_annot.serve.owner_pages import OwnerPages  # what reads and draws tables takes seconds to load

        return _application(OwnerPages(desk, log, directory, pictures, doors).router(), for_owner=True)

    app = _application(WorkerPages(desk, clerk, HandOut(log), pictures, doors, settings.hit).router(), lifespan)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"))
    app.mount("/", Later(owners))
    app.add_middleware(Guard, body=settings.limits.body, hosts=settings.hosts)
    return app


def _application(router: APIRouter, lifespan: Lifespan[FastAPI] | None = None, for_owner: bool = False) -> FastAPI:
    def failed(request: Request, error: Exception) -> Response:
        """503: the log is locked or out of reach, a file is damaged, or the like; the console says why, and so does the page
        to its owner. The client keeps the answer and tries again.
        """
        logger.error("%s", error)
        told = str(error) if for_owner and isinstance(error, AnnotError) else "not now; try again"
        return _answer(request, HTTPException(503, told, {"retry-after": str(RETRY_SECONDS)}))

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(router)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(AnnotError, failed)
    app.add_exception_handler(Exception, failed)  # the server writes its traceback to the console
    return app


async def _get_ready(pictures: Pictures, directory: Path) -> None:
    """Open the images as soon as the run has begun, and say what is waited for until then."""
    try:
        if pictures.task() is None:
            print(f"{directory}: no run yet; people are told to wait. Start lightning-annot fit with live workers.", flush=True)
        while pictures.task() is None:
            await asyncio.sleep(1)
        await asyncio.to_thread(pictures.open)
        print(f"{directory}: the images are there.", flush=True)
    except AnnotError as error:
        logger.error("%s", error)


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _answer(request, error)


def _answer(request: Request, error: HTTPException) -> Response:
    if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
        response: Response = page("message.html", error.status_code, message=str(error.detail))
        response.headers.update(error.headers or {})
        return response
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def _malformed(_: Request, error: Exception) -> Response:
    """Without what came: it is a stranger's text."""
    return JSONResponse({"error": "this is no request that the page knows"}, 422)
