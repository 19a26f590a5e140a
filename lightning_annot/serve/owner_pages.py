"""What the owner sees and does: how far the run is, who answers, images, pauses, links, and files to take away."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from lightning_annot.annotations.desk import EVERYBODY, Desk
from lightning_annot.annotations.failures import DatabaseError
from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.annotations.worker_names import LONGEST_NAME, worker_name
from lightning_annot.names import is_allowed
from lightning_annot.report.run_files import Headline, percent
from lightning_annot.serve.doors import Doors
from lightning_annot.serve.exports import EXPORTS, available, export
from lightning_annot.serve.gallery import ON_PAGE, SHELVES, Choice, Gallery, Order, Which
from lightning_annot.serve.overview import PLOTS, Overview
from lightning_annot.serve.people import CARD_COLUMNS, PersonRow, people_rows
from lightning_annot.serve.pictures import SMALL, Pictures
from lightning_annot.serve.tally import Tally
from lightning_annot.serve.templates import page
from lightning_annot.types import AnnotError

# A plot is an image: what it may do is drawn with style attributes, and nothing else.
PLOT_HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
LONGEST_REASON = 200


class Act(BaseModel):
    """What the owner wants done about a worker; about everybody, if it is a pause, where none is named."""

    model_config = ConfigDict(extra="forbid", strict=True)
    action: Literal["invite", "close", "pause", "resume"]
    worker: str = Field(max_length=LONGEST_NAME)
    reason: str = Field("", max_length=LONGEST_REASON)


class OwnerPages:
    """Routes of the owner alone."""

    def __init__(self, desk: Desk, log: AnnotationLog, directory: Path, pictures: Pictures, doors: Doors) -> None:
        self._desk, self._log, self._directory, self._pictures, self._doors = desk, log, directory, pictures, doors
        self._tally = Tally(log)
        self._overview = Overview(directory, self._tally, pictures.task)
        self._gallery = Gallery(self._overview.run, self._tally)
        self._reading: list[threading.Thread] = []

    def router(self) -> APIRouter:
        """All routes."""
        router = APIRouter()
        router.add_api_route("/o/{token}", self.enter, methods=["GET"])
        router.add_api_route("/owner", self.show, methods=["GET"])
        router.add_api_route("/owner/gallery", self.gallery, methods=["GET"])
        router.add_api_route("/owner/scorecards", self.scorecards, methods=["GET"])
        router.add_api_route("/owner/act", self.act, methods=["POST"])
        router.add_api_route("/owner/image", self.image, methods=["GET"])
        router.add_api_route("/owner/plot/{name}", self.plot, methods=["GET"])
        router.add_api_route("/owner/answers.csv", self.answers, methods=["GET"])
        router.add_api_route("/owner/export/{name}", self.export, methods=["GET"])
        return router

    def enter(self, request: Request, token: str) -> HTMLResponse:
        """Exchange the owner's link for a cookie; left by a click, as a worker's link is."""
        self._doors.owner(request, token)
        self._read_ahead()
        response = page("owner_welcome.html")
        self._doors.let_in(request, response, token, owner=True)
        return response

    def _read_ahead(self) -> None:
        """Begin to read log and files, as the overview comes next: of a large run that takes seconds."""
        if not self._reading:
            jobs: tuple[Callable[[], object], ...] = (lambda: self._tally.stamp, lambda: self._gallery.shelf(SHELVES[0]))
            self._reading = [threading.Thread(target=_try, args=(job,), daemon=True) for job in jobs]
            for thread in self._reading:
                thread.start()

    def show(self, request: Request) -> HTMLResponse:
        """The overview."""
        self._doors.owner(request)
        task = self._overview.task()
        study = None if task is None else task.study
        people = people_rows(self._desk, self._tally, self._overview, study)
        gold, open_, paused = self._tally.any_gold(), self._tally.open(), self._desk.paused()
        return page(
            "owner.html", now=self._now(open_, people, paused), headlines=self._overview.headlines(), study=study,
            evidence=self._overview.evidence(), damaged=self._overview.damaged(),
            phone="Mobi" in request.headers.get("user-agent", ""),  # so say browsers on phones; there, parts begin closed
            people=people, paused=paused, plots=self._overview.plots(),
            shelves=[] if study is not None else [self._gallery.shelf(choice) for choice in SHELVES],
            exports=available(self._directory, study is not None, gold, asked=open_ > 0),
        )  # fmt: skip

    def _now(self, open_: int, people: list[PersonRow], paused: str | None) -> list[Headline]:
        """The round that goes on, who may answer, the pace and the cost."""
        standing, pace = self._tally.standing(), self._tally.pace()
        tiles = [Headline("Open questions", f"{open_:,}", f"{self._desk.lent():,} of them lent just now")]
        if standing is not None:
            share = f"{standing.answered / standing.asked:.0%} answered"
            tiles.append(Headline(f"Round {standing.round}", f"{standing.answered:,} of {standing.asked:,}", share))
        able = 0 if paused is not None else sum(row.may_answer for row in people)
        tiles.append(Headline("May answer", f"{able:,}", _kept_out(people)))
        tiles.append(Headline("Answers an hour", f"{pace:,.0f}", "over the last quarter of an hour"))
        left = _duration(3600 * open_ / pace) if pace and open_ else "–"
        tiles.append(Headline("Until the round is full", left, "at this pace" if pace else "nobody answers just now"))
        prices = self._overview.prices()
        cost = float(self._tally.people({}, prices)["cost"].sum())
        note = f"so far; {prices.get('per_answer', 1.0):g} an answer, skips and gold too"
        return [*tiles, Headline("Cost", f"{cost:,.2f}", note)]

    def gallery(
        self,
        request: Request,
        which: Which = "all",
        order: Order = "riskiest",
        answers: int | None = Query(None, ge=0, le=3),
        disputed: bool = False,
        number: int = Query(1, ge=1, le=1_000_000, alias="page"),
    ) -> HTMLResponse:
        """All images of one kind, page by page."""
        self._doors.owner(request)
        choice = Choice(which, answers, disputed, order)
        shelf = self._gallery.shelf(choice, ON_PAGE * (number - 1), ON_PAGE)
        return page("gallery.html", shelf=shelf, choice=choice, number=number, pages=max(1, -(-shelf.total // ON_PAGE)))

    def scorecards(self, request: Request) -> HTMLResponse:
        """How each worker does, by all that the run and the log tell."""
        self._doors.owner(request)
        run = self._overview.run()
        if run is None:
            raise HTTPException(404, "the first round has not ended yet")
        from lightning_annot.report.scorecards import interval, scorecards

        try:
            cards = scorecards(run, self._log.answers())
        except DatabaseError:
            raise
        except AnnotError as error:
            raise HTTPException(404, str(error)) from error
        return page(
            "scorecards.html", rows=cards.to_dict("records"), columns=CARD_COLUMNS, percent=percent, interval=interval,
            intervals={"accuracy_mean": "accuracy", "gold_accuracy": "gold"},
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
                worker = worker_name(act.worker)
            except AnnotError as error:
                raise HTTPException(422, str(error)) from error
            return f"/w/{self._desk.invite(worker)}"
        if any(text and not is_allowed(text) for text in (act.worker, act.reason)):
            raise HTTPException(422, "a name or a reason holds a character that cannot be stored")
        if act.action == "pause":
            self._desk.pause(act.worker, act.reason.strip() or "by the owner")
        else:
            {"close": self._desk.revoke, "resume": self._desk.resume}[act.action](act.worker)
        return ""

    async def image(self, request: Request, item: str) -> Response:
        """The image of any item, by its id."""
        self._doors.owner(request)
        try:
            picture = await asyncio.shield(asyncio.wrap_future(self._pictures.encoded(item, SMALL)))
        except AnnotError as error:
            raise HTTPException(404, "the image cannot be shown") from error
        headers = {"cache-control": "private, max-age=3600"}
        return Response(picture.data, media_type=picture.media_type, headers=headers)

    def plot(self, request: Request, name: str) -> Response:
        """One of the plots, as the last round left it."""
        self._doors.owner(request)
        svg = self._overview.plot(name) if name in PLOTS else None
        if svg is None:
            raise HTTPException(404, "there is no such plot yet")
        return Response(svg, media_type="image/svg+xml", headers=PLOT_HEADERS)

    def answers(self, request: Request) -> Response:
        """All answers, skips and gold questions among them."""
        self._doors.owner(request)
        answers = self._log.answers().rename(columns={"item": "task"})
        columns = ["task", "worker", "label", "seconds", "kind", "round", "answered_at", "source"]
        return _file(answers[columns].to_csv(index=False), "text/csv", "answers.csv")

    def export(self, request: Request, name: str) -> Response:
        """One of ``EXPORTS``."""
        self._doors.owner(request)
        if name not in EXPORTS:
            raise HTTPException(404, "there is no such file")
        try:
            data = export(name, self._directory, self._log, self._overview.confusions)
        except DatabaseError:
            raise
        except AnnotError as error:
            raise HTTPException(404, str(error)) from error
        return _file(data, EXPORTS[name].media_type, EXPORTS[name].file)


def _try(job: Callable[[], object]) -> None:
    with contextlib.suppress(AnnotError):  # whoever looks will be told
        job()


def _file(data: str | bytes, media_type: str, name: str) -> Response:
    headers: dict[str, Any] = {"content-disposition": f'attachment; filename="{name}"'}
    return Response(data, media_type=media_type, headers=headers)


def _kept_out(people: list[PersonRow]) -> str:
    """``of 12 with a link; 1 paused, 2 set aside by the run``."""
    invited = [row for row in people if row.link == "open"]
    out = {
        "paused": sum(bool(row.paused) for row in invited),
        "set aside by the run": sum(bool(row.set_aside) for row in invited),
    }
    told = ", ".join(f"{n:,} {how}" for how, n in out.items() if n)
    return f"of {len(invited):,} with a link" + (f"; {told}" if told else "")


def _duration(seconds: float) -> str:
    """``1 h 20 min``."""
    minutes = max(1, round(seconds / 60))
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 2880 else f"{minutes // 1440} days"
