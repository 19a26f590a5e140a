"""The page over HTTP, as an application without a socket: what a worker gets, and what everybody else does not."""

from __future__ import annotations

import inspect
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from hostile import given, hostile
from PIL import Image
from run_folder import make_run

from lightning_annot.annotations.desk import Desk
from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.data.page_task import TASK_FILE, ImageSettings, PageTask
from lightning_annot.serve.app import PageSettings, make_app
from lightning_annot.serve.command import serve_parser
from lightning_annot.serve.guard import HEADERS, Buckets, Limits
from lightning_annot.serve.keys import class_keys
from lightning_annot.serve.overview import PLOTS
from lightning_annot.types import AnnotError, Answer, Question
from lightning_annot.workers.live import LiveWorkers

TestClient = pytest.importorskip("fastapi.testclient").TestClient

MARKUP = "<img src=x onerror=alert(1)>"
CLASSES = ("cat", "dog", MARKUP)
OWNER = "owner-secret"


@dataclass
class Place:
    """A page, its log, and links to it."""

    folder: Path
    log: AnnotationLog
    desk: Desk
    keeper: TestClient  # its event loop is where the clerk works

    def client(self, name: str | None = None) -> TestClient:
        """A browser without a cookie, or that of a worker who has opened the link."""
        client = TestClient(self.keeper.app, base_url="http://page.test")
        client.portal = self.keeper.portal
        if name is not None:
            assert client.get(f"/w/{self.desk.invite(name)}").status_code == 200
        return client

    def facts(self) -> str:
        """The whole log, as text."""
        return self.log.questions().to_csv() + self.log.answers().to_csv()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Four questions about images in a folder; b is known as a cat, and no dog is known."""
    for name, colour in zip("abcdef", ("red", "green", "blue", "white", "black", "pink"), strict=True):
        exif = Image.Exif()
        exif[0x010E] = "taken at home"
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (300, 200), colour).save(tmp_path / "photos" / f"{name}.jpg", exif=exif)
    (tmp_path / "secret.txt").write_text("not for you")
    task = PageTask(
        CLASSES, CLASSES, {"cat": ("b.jpg", "f.jpg"), "dog": (), MARKUP: ()}, ImageSettings(str(tmp_path / "photos"))
    )
    folder = tmp_path / "run"
    folder.mkdir()
    with AnnotationLog(folder / "annotations.db") as log:
        log.ask([Question("a.jpg", None), Question("c.jpg", "bob"), Question("d.jpg", None), Question("b.jpg", "ann", "gold")])
        (folder / TASK_FILE).write_text(task.to_json())
        app = make_app(folder, log, OWNER, PageSettings(hit=2, limits=Limits(stranger_burst=1000)))
        with TestClient(app) as keeper:
            yield Place(folder, log, Desk(log), keeper)


def ask(client: TestClient, n: int = 10) -> list[int]:
    found = client.post("/api/next", json={"n": n})
    assert found.status_code == 200
    questions: list[int] = found.json()["questions"]
    return questions


def test_a_worker_labels_a_hit(place: Place) -> None:
    ann = place.client("ann")
    assert ask(ann) == [4, 1, 3]  # what is addressed to her comes first
    assert ann.post("/api/answer", json=given(1)).json() == {"new": True}
    assert ann.post("/api/answer", json=given(1, "dog")).json() == {"new": False}  # the first counts
    assert ann.post("/api/answer", json=given(3, None, "unsure")).json() == {"new": True}
    assert ann.post("/api/answer", json=given(4, MARKUP)).json() == {"new": True}
    assert ask(ann) == []
    rows = place.log.answers()[["worker", "label", "seconds", "source"]].to_numpy().tolist()
    assert rows == [["ann", "cat", 1.0, "page"], ["ann", None, 1.0, "page: unsure"], ["ann", MARKUP, 1.0, "page"]]
    assert ann.post("/api/next", json={"n": 1}).json() == {"questions": [], "done": 3, "of": 0, "paused": ""}


def test_pixels_alone_are_sent(place: Place) -> None:
    ann = place.client("ann")
    ask(ann)
    picture = ann.get("/image/1")
    assert picture.headers["content-type"] == "image/jpeg"
    assert picture.headers["cache-control"].startswith("private")
    image = Image.open(io.BytesIO(picture.content))
    assert image.size == (300, 200)
    assert image.getpixel((5, 5))[0] > 250
    assert not image.getexif()
    example = Image.open(io.BytesIO(ann.get("/example/0/1").content))
    assert max(example.size) == 160
    red, green, blue = example.getpixel((5, 5))
    assert red > 200 > green > blue or (red > 200 and blue > 150)  # pink: b.jpg is a gold question, and would tell its answer
    assert ann.get("/example/1/0").status_code == 404
    assert ann.get("/example/9/0").status_code == 404


def test_class_names_are_text(place: Place) -> None:
    html = place.client("ann").get("/").text
    assert MARKUP not in html
    assert "&lt;img src=x onerror=alert(1)&gt;" in html
    assert not re.search(r"<script(?! src=\"/static/)", html)
    assert " style=" not in html
    assert not re.findall(r"(?:src|href)=\"(?!/)[^\"]*", html)


def test_every_answer_has_the_headers(place: Place) -> None:
    ann = place.client("ann")
    for path in ("/", "/static/page.js", "/image/9", "/nothing"):
        found = ann.get(path).headers
        assert {name: found[name] for name in HEADERS} == HEADERS
        assert "cache-control" in found
    link = place.client().get(f"/w/{place.desk.invite('ann')}")
    assert {"HttpOnly", "SameSite=strict"} <= set(link.headers["set-cookie"].split("; "))


def test_pauses_and_closed_links(place: Place) -> None:
    ann = place.client("ann")
    place.desk.pause(reason="lunch")
    assert ann.post("/api/next", json={"n": 1}).json() == {"questions": [], "done": 0, "of": 0, "paused": "lunch"}
    place.desk.resume()
    place.desk.revoke("ann")
    other = make_app(place.folder, place.log, OWNER)  # without what the first has in mind for two seconds
    with TestClient(other, base_url="http://page.test", cookies=dict(ann.cookies)) as client:
        assert client.post("/api/next", json={"n": 1}).status_code == 401


def test_who_comes_by_a_closed_link_is_told_so_and_a_guesser_nothing(place: Place) -> None:
    renewed, closed = place.desk.invite("ann"), place.desk.invite("bob")
    latest = place.desk.invite("ann")
    place.desk.revoke("bob")
    stranger, html = place.client(), {"accept": "text/html"}
    told = {token: stranger.get(f"/w/{token}", headers=html) for token in (renewed, closed, "a" * 22, closed[:-1])}
    assert [page.status_code for page in told.values()] == [401] * 4
    told_so = "this link was closed; ask the owner for a new one"
    assert [told_so in page.text for page in told.values()] == [True, True, False, False]
    assert told["a" * 22].text == told[closed[:-1]].text
    assert "open your personal link first" in told["a" * 22].text
    assert place.client().get(f"/w/{latest}").status_code == 200
    place.desk.invite("bob")
    assert told_so in stranger.get(f"/w/{closed}").json()["error"]
    assert "owner&#39;s link first" in stranger.get("/o/guess", headers=html).text


def test_before_the_run_has_begun(tmp_path: Path) -> None:
    with AnnotationLog(tmp_path / "annotations.db") as log:
        link = f"/w/{Desk(log).invite('ann')}"
        with TestClient(make_app(tmp_path, log, OWNER)) as client:
            assert client.get(link).status_code == 200
            assert "not begun yet" in client.get("/").text
            assert ask(client) == []


def test_a_hundred_hostile_requests_change_nothing(place: Place) -> None:
    ann, nobody, liar = place.client("ann"), place.client(), place.client()
    assert ask(ann) == [4, 1, 3]  # what is addressed to her comes first
    (name,) = ann.cookies
    liar.cookies.set(name, "bob")
    facts, requests = place.facts(), hostile()
    assert len({request.name for request in requests}) == len(requests) >= 100
    for name, method, path, arguments in requests:
        assert 400 <= ann.request(method, path, **arguments).status_code < 500, name
    for client in (nobody, liar):
        for method, path, arguments in [
            ("GET", "/", {}),
            ("GET", "/image/1", {}),
            ("GET", "/example/0/1", {}),
            ("GET", "/owner", {}),
            ("POST", "/api/next", {"json": {"n": 1}}),
            ("POST", "/api/answer", {"json": given(1)}),
        ]:
            assert client.request(method, path, **arguments).status_code in (401, 404)
    assert place.facts() == facts


def test_the_owner_sees_and_steers(place: Place) -> None:
    ann, owner = place.client("ann"), place.client()
    assert ask(ann, 1) == [4]
    ann.post("/api/answer", json=given(4, MARKUP))
    assert owner.get("/owner").status_code == ann.get("/owner").status_code == 401
    assert owner.get(f"/o/{OWNER}x").status_code == 401
    assert owner.get(f"/o/{OWNER}").status_code == 200
    html = owner.get("/owner").text
    assert "The first round has not ended yet" in html
    assert re.search(r"<dt>Open questions</dt><dd><b>3</b> <small>0 of them lent", html)
    assert re.search(r"<dt>May answer</dt><dd><b>1</b> <small>of 1 with a link</small>", html)
    assert html.count("<details open>") == html.count("<summary>") == 5
    phone = owner.get("/owner", headers={"user-agent": "Mozilla/5.0 (Linux; Android 14) Mobile Safari/537.36"}).text
    assert (phone.count("<details>"), phone.count("<details open>")) == (5, 0)
    path = owner.post("/owner/act", json={"action": "invite", "worker": MARKUP}).json()["path"]
    assert place.client().get(path).status_code == 200
    assert MARKUP not in owner.get("/owner").text
    assert owner.post("/owner/act", json={"action": "pause", "worker": "ann"}).status_code == 200
    assert ask(ann) == []
    owner.post("/owner/act", json={"action": "resume", "worker": "ann"})
    assert ask(ann) == [1, 3]
    owner.post("/owner/act", json={"action": "pause", "worker": "", "reason": "lunch"})
    assert "<dt>May answer</dt><dd><b>0</b>" in (html := owner.get("/owner").text)
    assert "Everybody is paused: lunch." in html
    owner.post("/owner/act", json={"action": "resume", "worker": ""})
    owner.post("/owner/act", json={"action": "close", "worker": "ann"})
    assert ann.post("/api/next", json={"n": 1}).status_code == 401
    assert owner.get("/owner/image", params={"item": "c.jpg"}).headers["content-type"] == "image/jpeg"
    for item in ("../secret.txt", "/etc/passwd", "x.jpg", ""):
        assert owner.get("/owner/image", params={"item": item}).status_code == 404
    assert owner.get("/owner/answers.csv").text.splitlines()[1].startswith(f"b.jpg,ann,{MARKUP},1.0,gold,0,")
    for odd in (
        {"action": "invite", "worker": ""},
        {"action": "invite", "worker": "x\ny"},
        {"action": "drop", "worker": "ann"},
    ):
        assert owner.post("/owner/act", json=odd).status_code == 422


def test_the_owner_sees_plots_and_images_of_a_run(place: Place) -> None:
    make_run(place.folder)
    table = pd.read_csv(place.folder / "rounds.csv").assign(finished_risk=0.026, finished_risk_low=0.012)
    table.assign(finished_risk_high=0.05, fresh_answers=100).to_csv(place.folder / "rounds.csv", index=False)
    place.log.record([(Question("00200", None), Answer(0, who, label)) for who, label in (("x", "cat"), ("y", "dog"))])
    owner = place.client()
    owner.get(f"/o/{OWNER}")
    html = owner.get("/owner").text
    assert "Images people disagree about: 1" in html
    assert "<small>x: cat</small><small>y: dog</small>" in html
    assert "Stated error: fewer than 500 fresh answers: confidence not verified yet" in html
    assert "expected share of wrong labels, of the finished; 90% interval 1.2 % to 5.0 %" in html
    for name in set(PLOTS) - {"people"}:
        plot = owner.get(f"/owner/plot/{name}")
        assert plot.headers["content-type"] == "image/svg+xml"
        assert "<svg" in plot.text
    assert owner.get("/owner/plot/none").status_code == 404


def test_strangers_and_hurried_workers_are_slowed_down(place: Place) -> None:
    limits = Limits(worker_rate=1e-9, worker_burst=5, stranger_rate=1e-9, stranger_burst=3)
    with TestClient(make_app(place.folder, place.log, OWNER, PageSettings(limits=limits))) as client:
        assert [client.get(f"/w/guess{i}").status_code for i in range(5)] == [401, 401, 401, 429, 429]
        link = f"/w/{place.desk.invite('ann')}"
        assert [client.get(link).status_code for _ in range(7)] == [200] * 5 + [429] * 2


def test_buckets_fill_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    buckets = Buckets(rate=2, burst=3)
    assert [buckets.spend("a") for _ in range(4)] == [True, True, True, False]
    assert buckets.spend("b")
    now[0] = 0.5
    assert [buckets.spend("a") for _ in range(2)] == [True, False]


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (["cat", "dog"], ["1", "2"]),
        (list("0123456789"), list("0123456789")),
        (list("ABC"), list("abc")),
        (list("STU"), list("123")),
        ([f"class {i}" for i in range(10)], []),
        (["a", "A"], ["1", "2"]),
    ],
)
def test_keys(names: list[str], keys: list[str]) -> None:
    assert class_keys(names) == keys


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 2}', '{"format": 1, "classes": []}'])
def test_a_broken_task_file(tmp_path: Path, text: str) -> None:
    (tmp_path / TASK_FILE).write_text(text)
    with pytest.raises(AnnotError, match="is damaged"):
        PageTask.read(tmp_path / TASK_FILE)


def test_the_guide_tells_all_options() -> None:
    guide = (Path(__file__).resolve().parents[1] / "docs" / "people.md").read_text(encoding="utf-8")
    options = set(re.findall(r"--[a-z-]+", serve_parser().format_help())) - {"--help"}
    assert options == set(re.findall(r"^\| `(--[a-z-]+)`", guide, flags=re.M))
    settings = set(inspect.signature(LiveWorkers).parameters)
    assert settings == set(re.findall(r"^\| `([a-z_]+)` \|", guide, flags=re.M))


def test_numbered_items(tmp_path: Path) -> None:
    for i in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i:05d}.png")
    assert list(ImageSettings(str(tmp_path), id_pattern="%05d.png", numbered=3).open().ids) == ["0", "1", "2"]
    pd.DataFrame({"task": ["2", "0"]}).to_csv(tmp_path / "items.csv", index=False)
    items = str(tmp_path / "items.csv")
    assert list(ImageSettings(str(tmp_path), items=items, id_pattern="%05d.png").open().ids) == ["2", "0"]
