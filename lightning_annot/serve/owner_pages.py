"""What the owner sees and does: how far the run is, who answers, pauses, links, and the answers as a file."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from lightning_annot.annotations.desk import EVERYBODY, LONGEST_NAME, Desk
from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.serve.doors import Doors
from lightning_annot.serve.overview import PLOTS, Overview
from lightning_annot.serve.pictures import SMALL, Pictures
from lightning_annot.serve.templates import page
from lightning_annot.types import AnnotError

# A plot is an image: what it may do is drawn with style attributes, and nothing else.
PLOT_HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}


class Act(BaseModel):
    """What the owner wants done about a worker; about everybody, if it is a pause, where none is named."""

    model_config = ConfigDict(extra="forbid", strict=True)
    action: Literal["invite", "close", "pause", "resume"]
    worker: str = Field(max_length=LONGEST_NAME)


class OwnerPages:
    """Routes of the owner alone."""

    def __init__(self, desk: Desk, log: AnnotationLog, pictures: Pictures, doors: Doors, overview: Overview) -> None:
        self._desk, self._log, self._pictures, self._doors, self._overview = desk, log, pictures, doors, overview

    def router(self) -> APIRouter:
        """All routes."""
        router = APIRouter()
        router.add_api_route("/o/{token}", self.enter, methods=["GET"])
        router.add_api_route("/owner", self.show, methods=["GET"])
        router.add_api_route("/owner/act", self.act, methods=["POST"])
        router.add_api_route("/owner/image", self.image, methods=["GET"])
        router.add_api_route("/owner/plot/{name}", self.plot, methods=["GET"])
        router.add_api_route("/owner/answers.csv", self.export, methods=["GET"])
        return router

    def enter(self, request: Request, token: str) -> HTMLResponse:
        """Exchange the owner's link for a cookie; left by a click, as a worker's link is."""
        self._doors.owner(request, token)
        response = page("owner_welcome.html")
        self._doors.let_in(request, response, token, owner=True)
        return response

    def show(self, request: Request) -> HTMLResponse:
        """The overview."""
        self._doors.owner(request)
        counts = self._desk.counts()
        people = self._desk.people()
        named = {person.worker for person in people}
        open_, lent = self._desk.standing()
        return page(
            "owner.html", headlines=self._overview.headlines(), people=people, counts=counts, open=open_, lent=lent,
            others=sorted(set(counts) - named), accuracy=self._overview.worker_accuracy(), paused=self._desk.paused(),
            plots=self._overview.plots(), shelves=self._overview.shelves(),
        )  # fmt: skip

    async def act(self, request: Request, act: Act) -> dict[str, str]:
        """Do it; an invitation answers with the path of the new link, which is told this once."""
        self._doors.owner(request)
        if act.worker == EVERYBODY and act.action in ("invite", "close"):
            raise HTTPException(422, "name a worker")
        path = await run_in_threadpool(self._do, act)
        self._doors.forget()
        return {"path": path}

    def _do(self, act: Act) -> str:
        if act.action == "invite":
            try:
                return f"/w/{self._desk.invite(act.worker)}"
            except AnnotError as error:
                raise HTTPException(422, str(error)) from error
        {"close": self._desk.revoke, "pause": self._desk.pause, "resume": self._desk.resume}[act.action](act.worker)
        return ""

    def image(self, request: Request, item: str) -> Response:
        """The image of any item, by its id."""
        self._doors.owner(request)
        try:
            picture = self._pictures.encoded(item, SMALL)
        except AnnotError as error:
            raise HTTPException(404, "the image cannot be shown") from error
        return Response(picture.data, media_type=picture.media_type)

    def plot(self, request: Request, name: str) -> Response:
        """One of the plots, as the last round left it."""
        self._doors.owner(request)
        svg = self._overview.plot(name) if name in PLOTS else None
        if svg is None:
            raise HTTPException(404, "there is no such plot yet")
        return Response(svg, media_type="image/svg+xml", headers=PLOT_HEADERS)

    def export(self, request: Request) -> Response:
        """All answers, skips and gold questions among them."""
        self._doors.owner(request)
        answers = self._log.answers().rename(columns={"item": "task"})
        columns = ["task", "worker", "label", "seconds", "kind", "round", "answered_at", "source"]
        headers = {"content-disposition": 'attachment; filename="answers.csv"'}
        return Response(answers[columns].to_csv(index=False), media_type="text/csv", headers=headers)
