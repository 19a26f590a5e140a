"""What a worker sees and sends: the personal link, the labelling page, its images and answers."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Literal

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from lightning_annot.annotations.desk import Desk
from lightning_annot.data.page_task import PageTask
from lightning_annot.serve.clerk import Clerk
from lightning_annot.serve.doors import Doors
from lightning_annot.serve.handout import HandOut
from lightning_annot.serve.keys import class_keys
from lightning_annot.serve.pictures import LARGE, SMALL, Pictures
from lightning_annot.serve.templates import page
from lightning_annot.types import AnnotError, Answer

IMAGE_CACHE = {"cache-control": "private, max-age=3600"}


class Wish(BaseModel):
    """So many questions, please."""

    model_config = ConfigDict(extra="forbid", strict=True)
    n: int = Field(ge=1, le=1000)


class Given(BaseModel):
    """An answer: a class, or why there is none."""

    model_config = ConfigDict(extra="forbid", strict=True)
    question: int = Field(ge=1, lt=1 << 31)
    label: str | None = Field(max_length=1000)
    reason: Literal["none", "unsure", "skip"] | None = None
    seconds: float = Field(ge=0, le=86_400, allow_inf_nan=False)


class WorkerPages:
    """Routes of workers; each person sees the questions that the desk lends them, and no other image but the examples.

    ``hit``: images of one HIT.
    """

    def __init__(self, desk: Desk, clerk: Clerk, handout: HandOut, pictures: Pictures, doors: Doors, hit: int) -> None:
        self._desk, self._clerk, self._handout = desk, clerk, handout
        self._pictures, self._doors, self._hit = pictures, doors, hit

    def router(self) -> APIRouter:
        """All routes."""
        router = APIRouter()
        router.add_api_route("/w/{token}", self.enter, methods=["GET"])
        router.add_api_route("/", self.label, methods=["GET"])
        router.add_api_route("/api/next", self.next, methods=["POST"])
        router.add_api_route("/api/answer", self.answer, methods=["POST"])
        router.add_api_route("/image/{question}", self.image, methods=["GET"])
        router.add_api_route("/example/{place}/{number}", self.example, methods=["GET"])
        return router

    async def enter(self, request: Request, token: str) -> HTMLResponse:
        """Exchange a personal link for a cookie, which no script can read and no other site can send.

        The page is left by a click: where a link of another site led here, only what comes after has the cookie.
        """
        worker = await self._doors.worker_of(request, token)
        response = page("welcome.html", worker=worker, task=self._pictures.task())
        self._doors.let_in(request, response, token)
        return response

    async def label(self, request: Request) -> HTMLResponse:
        """The labelling page."""
        worker = await self._doors.worker(request)
        task = self._pictures.task()
        if task is None:
            return page("waiting.html", worker=worker)
        keys, examples = class_keys(task.names), await asyncio.to_thread(self._examples, task)
        classes = [
            {"label": label, "name": name, "key": keys[i] if keys else "", "examples": examples[i]}
            for i, (label, name) in enumerate(zip(task.classes, task.names, strict=True))
        ]
        return page("label.html", worker=worker, classes=classes, find=not keys, hit=self._hit, run=self._desk.run)

    async def next(self, request: Request, wish: Wish) -> dict[str, object]:
        """Lend the next questions; why there are none, if so. ``of``: all questions of this worker in a study, else 0."""
        worker = await self._doors.worker(request)
        task = self._pictures.task()
        study = None if task is None else task.study
        if study is not None:
            await run_in_threadpool(self._handout.to, worker, study)
        loan = await self._clerk.lend(worker, min(wish.n, 2 * self._hit + 10) if task else 0)
        return {**asdict(loan), "of": 0 if study is None else study.size}

    async def answer(self, request: Request, given: Given) -> dict[str, bool]:
        """Commit an answer to a question that was lent; one that is there already changes nothing."""
        worker = await self._doors.worker(request)
        task = self._pictures.task()
        if (given.label is None) == (given.reason is None):
            raise HTTPException(422, "give a label, or a reason why not")
        if task is None or (given.label is not None and given.label not in task.classes):
            raise HTTPException(422, "this is none of the classes")
        source = "page" if given.reason is None else f"page: {given.reason}"
        new = await self._clerk.take(Answer(given.question, worker, given.label, given.seconds, source))
        if new is None:
            raise HTTPException(403, "you were not asked this")
        return {"new": new}

    async def image(self, request: Request, question: int) -> Response:
        """The image of a question that is or was lent to who asks."""
        worker = await self._doors.worker(request)
        item = await run_in_threadpool(self._desk.item_lent, question, worker) if 0 < question < 1 << 31 else None
        if item is None:
            raise HTTPException(404, "there is no such image for you")
        return await self._picture(item, LARGE)

    async def example(self, request: Request, place: int, number: int) -> Response:
        """One of the examples of the class at ``place``; a gold question is none, as that would tell its answer."""
        await self._doors.worker(request)
        task = self._pictures.task()
        own = task.examples.get(task.classes[place], ()) if task is not None and 0 <= place < len(task.classes) else ()
        gold = await asyncio.to_thread(self._desk.gold_items, own)
        if not 0 <= number < len(own) or own[number] in gold:
            raise HTTPException(404, "there is no such example")
        return await self._picture(own[number], SMALL)

    def _examples(self, task: PageTask) -> list[list[int]]:
        """Numbers of the examples of each class that may be shown."""
        shown = [task.examples.get(label, ()) for label in task.classes]
        gold = self._desk.gold_items([item for own in shown for item in own])
        return [[number for number, item in enumerate(own) if item not in gold] for own in shown]

    async def _picture(self, item: str, edge: int) -> Response:
        try:
            # shielded: who goes away takes the picture from nobody else
            picture = await asyncio.shield(asyncio.wrap_future(self._pictures.encoded(item, edge)))
        except AnnotError as error:
            raise HTTPException(404, "the image cannot be shown") from error
        return Response(picture.data, media_type=picture.media_type, headers=IMAGE_CACHE)
