"""The page as a process on a real socket, under attack: each request is refused, nothing changes, and no secret is told."""

from __future__ import annotations

import contextlib
import itertools
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import cli_runs
import pytest
from cli_runs import ROOT
from hostile import hostile
from PIL import Image
from sqlalchemy import MetaData, select

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.data.page_task import TASK_FILE, ImageSettings, PageTask
from lightning_annot.experiments.served import ServedPage, cookie_of
from lightning_annot.types import Question

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")

FLOOD = 600  # connections, more than the page holds
SECONDS = 120.0  # most that an answer may take on a busy machine; without one it is a failure
JSON = "content-type: application/json\r\n"


@dataclass
class Site:
    """A page that runs, ann's and the owner's secrets, ann's cookie, and what the process has printed."""

    log: AnnotationLog
    port: int
    ann: str
    owner: str
    cookie: str
    printed: Path

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS)

    def send(self, text: bytes) -> int:
        """The status that these bytes are answered with; 0 if the connection is closed without an answer."""
        with self.connect() as connection:
            try:
                connection.sendall(text)
                head = connection.recv(4096)
            except TimeoutError:
                raise
            except OSError:
                return 0
        return int(head.split(b" ", 2)[1]) if head else 0

    def ask(self, method: str, path: str, head: str = "", body: bytes = b"", host: str | None = None) -> int:
        """The status of a request of ann's, whose path goes out as it is."""
        host = f"127.0.0.1:{self.port}" if host is None else host
        lines = f"{method} {path} HTTP/1.1\r\nhost: {host}\r\ncookie: {self.cookie}\r\n{head}\r\n"
        while (status := self.send(lines.encode() + body)) == 429:  # the page slows down who hurries
            time.sleep(0.2)
        return status

    def tables(self) -> dict[str, list[tuple]]:
        """All rows of all tables."""
        everything = MetaData()
        with self.log.reading() as connection:
            everything.reflect(connection)
            return {name: sorted(map(tuple, connection.execute(select(t))), key=str) for name, t in everything.tables.items()}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "photos").mkdir()
    for name in "abcd":
        Image.new("RGB", (30, 20)).save(tmp_path / "photos" / f"{name}.jpg")
    (tmp_path / "secret.txt").write_text("not for you")
    run = tmp_path / "run"
    run.mkdir()
    task = PageTask(("cat", "dog"), ("cat", "dog"), {"cat": (), "dog": ()}, ImageSettings(str(tmp_path / "photos")))
    (run / TASK_FILE).write_text(task.to_json())
    printed = tmp_path / "printed.txt"
    with AnnotationLog(run / "annotations.db") as log, printed.open("wb") as sink:
        log.ask([Question("a.jpg", None), Question("c.jpg", "bob"), Question("d.jpg", None), Question("b.jpg", "ann", "gold")])
        command = [sys.executable, "-m", "lightning_annot", "serve", str(run), "--port", "0", "--invite", "ann"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=sink, text=True)
        assert process.stdout is not None
        try:
            links = dict(process.stdout.readline().strip().split(": ", 1) for _ in range(2))
            ann, owner = (urlsplit(links[name]).path[3:] for name in ("ann", "owner"))
            yield Site(log, urlsplit(links["ann"]).port or 0, ann, owner, cookie_of(links["ann"]), printed)
        finally:
            process.terminate()
            rest = process.stdout.read()
            process.wait()
        told = rest + printed.read_text()
        assert ann not in told
        assert owner not in told
        assert "Traceback" not in told


def prepare(site: Site) -> dict[str, list[tuple]]:
    """Lend ann her questions, and say what is in the database then."""
    assert site.ask("POST", "/api/next", f"{JSON}content-length: 8\r\n", b'{"n": 3}') == 200
    assert site.ask("GET", f"/o/{site.owner}") == site.ask("GET", f"/w/{site.ann}") == site.ask("GET", "/image/1") == 200
    return site.tables()


def still_works(site: Site) -> None:
    body = b'{"question": 1, "label": "cat", "seconds": 1.0}'
    assert site.ask("POST", "/api/answer", f"{JSON}content-length: {len(body)}\r\n", body) == 200
    assert len(site.log.answers()) == 1


def test_hostile_requests(site: Site) -> None:
    before = prepare(site)
    for name, method, path, arguments in hostile():
        request = httpx.Request(method, f"http://127.0.0.1:{site.port}/", **arguments)
        head = "".join(f"{key}: {value}\r\n" for key, value in request.headers.items() if key != "host")
        if arguments.get("headers", {}).get("content-length") is None:
            status = site.ask(method, path, head, request.read())
        else:
            status = site.ask(method, path, f"{JSON}content-length: 999999\r\n", b"{}")
        assert 400 <= status < 500, (name, status)
    assert site.tables() == before
    assert site.log.answers().empty
    still_works(site)


def test_paths_as_they_are(site: Site) -> None:
    before = prepare(site)
    for path in (
        "/static/..%2f..%2fapp.py", "/static/..%2Fapp.py", "/static/../app.py", "/static/..\\app.py", "/static/%2e%2e%5capp.py",
        "/static//etc/passwd", "/static/%2fetc%2fpasswd", "/static/....//app.py", "/../../etc/passwd", "//etc/passwd", "*",
        "/image/..%2f..%2fsecret.txt", "/image/%252e%252e%252fsecret.txt", "/w/..%2f..%2fsecret.txt", "http://evil.test/",
        "/static/%c0%ae%c0%ae/app.py",
    ):  # fmt: skip
        assert 400 <= site.ask("GET", path) < 500, path
    assert site.tables() == before


def test_malformed_http_foreign_hosts_and_bodies(site: Site) -> None:
    before = prepare(site)
    host = f"host: 127.0.0.1:{site.port}\r\n"
    cookie = f"cookie: {site.cookie}\r\n"
    answer = b'{"question": 1, "label": "cat", "seconds": 1.0}'
    post = f"POST /api/answer HTTP/1.1\r\n{host}{cookie}{JSON}"
    chunked = f"{post}transfer-encoding: chunked\r\n\r\n".encode()
    good_chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(answer), answer)
    malformed = [
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),  # TLS
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /\r\n\r\n",
        f"GET / HTTP/1.1\r\n{host}{host}\r\n".encode(),
        f"GET / HTTP/1.1\r\n{host}x : y\r\n\r\n".encode(),
        f"GET / HTTP/1.1\r\n{host}x: a\x00b\r\n\r\n".encode(),
        f"GET /\x00 HTTP/1.1\r\n{host}\r\n".encode(),
        f"GET / HTTP/1.1\r\n{host}x: {'y' * 70_000}\r\n\r\n".encode(),
        f"GET / HTTP/1.1\r\n{host}{''.join(f'x{i}: y{chr(13)}{chr(10)}' for i in range(9000))}\r\n".encode(),
        f"{post}content-length: 47\r\ncontent-length: 48\r\n\r\n".encode() + answer,
        f"{post}content-length: -1\r\n\r\n".encode() + answer,
        f"{post}content-length: 1e2\r\n\r\n".encode() + answer,
        f"{post}content-length: {len(answer)}\r\ntransfer-encoding: chunked\r\n\r\n".encode() + good_chunk,
        f"{post}transfer-encoding: gzip\r\n\r\n".encode() + answer,
        f"{post}content-length: 2000000\r\n\r\n".encode() + b"x" * 100_000,
        chunked + b"zz\r\n{}\r\n0\r\n\r\n",
        chunked + b"-2\r\n{}\r\n0\r\n\r\n",
        chunked + b"ffffffffffffffffffff\r\n{}",
        chunked + b"1000\r\n" + b" " * 4096 + b"\r\n" + b"1000\r\n" + b" " * 4096 + b"\r\n" * 30,
        chunked + (b"1000\r\n" + b" " * 4096 + b"\r\n") * 20,
        f"CONNECT evil.test:80 HTTP/1.1\r\n{host}\r\n".encode(),
        f"GET / HTTP/1.1\r\n{host}upgrade: websocket\r\nconnection: upgrade\r\n\r\n".encode(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]
    for text in malformed:
        status = site.send(text)
        assert status == 0 or 400 <= status < 500, (text[:150], status)
    evil = ["evil.test", f"evil.test:{site.port}", f"127.0.0.1.evil.test:{site.port}", f"a@127.0.0.1:{site.port}", "127.1", "",
            "localhost.evil.test", "2130706433", "[::ffff:127.0.0.1]", "0.0.0.0", "127.0.0.1:80:80", "127.0.0.1/x"]  # fmt: skip
    for name in evil:
        head = f"{JSON}origin: http://{name}\r\ncontent-length: {len(answer)}\r\n"
        assert site.ask("POST", "/api/answer", head, answer, host=name) in (400, 421), name
        assert site.ask("GET", "/image/1", host=name) in (400, 421), name
    for name in ("localhost", f"LOCALHOST:{site.port}", "[::1]:80", "127.0.0.1"):
        assert site.ask("GET", "/image/1", host=name) == 200, name
    assert site.tables() == before
    still_works(site)


def test_who_is_slow_is_cut_off_and_a_flood_keeps_nobody_out(site: Site) -> None:
    before, host = prepare(site), f"host: 127.0.0.1:{site.port}\r\n"
    begun = [b"", b"GET / HT", f"GET / HTTP/1.1\r\n{host}x: ".encode(), f"GET / HTTP/1.1\r\n{host}".encode(),
             f"POST /api/answer HTTP/1.1\r\n{host}{JSON}content-length: 100\r\n\r\n{{".encode(),
             f"POST /api/answer HTTP/1.1\r\n{host}{JSON}transfer-encoding: chunked\r\n\r\n1".encode()]  # fmt: skip
    slow = [site.connect() for _ in range(4) for _ in begun]
    for connection, text in zip(slow, begun * 4, strict=True):
        connection.sendall(text)
    start = time.monotonic()
    while slow and time.monotonic() < start + SECONDS:
        time.sleep(0.5)
        slow = [connection for connection in slow if trickle(connection)]
        assert site.ask("GET", "/image/1") == 200  # meanwhile
    assert not slow
    assert time.monotonic() - start > 5  # nobody is cut off who is only far away
    flood = [site.connect() for _ in range(FLOOD)]
    assert site.ask("GET", "/image/1") == 200
    for connection in flood:
        connection.close()
    greedy = [unread(site.port, f"GET /static/page.js HTTP/1.1\r\n{host}\r\n".encode()) for _ in range(FLOOD)]
    time.sleep(1)
    assert site.ask("GET", "/image/1") == 200
    for connection in greedy:
        connection.close()
    assert site.tables() == before
    still_works(site)


def unread(port: int, request: bytes) -> socket.socket:
    """A connection that asks for much and reads nothing."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.connect(("127.0.0.1", port))
    connection.setblocking(False)
    with contextlib.suppress(OSError):
        connection.send(request * 50)
    return connection


def trickle(connection: socket.socket) -> bool:
    """Send one byte more; whether the other side still listens."""
    connection.setblocking(False)
    try:
        if connection.recv(1000) == b"":
            return False
    except BlockingIOError:
        pass
    except OSError:
        return False
    try:
        connection.send(b"a")
    except OSError:
        return False
    return True


def test_two_pages_of_a_host_let_one_client_in_to_both(tmp_path: Path) -> None:
    runs = [tmp_path / "one", tmp_path / "two"]
    task = PageTask(("cat", "dog"), ("cat", "dog"), {}, None).to_json()
    for run, n in zip(runs, (1, 2), strict=True):
        with AnnotationLog(run / "annotations.db") as log:
            log.ask([Question(str(i), None) for i in range(n)])
        (run / TASK_FILE).write_text(task)
    with ServedPage(runs[0], ["ann"]) as one, ServedPage(runs[1], ["ann"]) as two, httpx.Client(timeout=30) as client:
        for link in (*one.links.values(), *two.links.values()):
            assert client.get(link).status_code == 200
        for served, lent in ((one, [1]), (two, [1, 2])):
            assert client.post(f"{served.address}/api/next", json={"n": 9}).json()["questions"] == lent
            assert client.get(f"{served.address}/owner").status_code == 200


def tries(port: int, forwarded: Iterator[str]) -> int:
    """How many wrong links one client may try, a new ``X-Forwarded-For`` each time, before it has to wait; 60 at most."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=SECONDS) as client:
        for n in range(60):
            if client.get("/w/guess", headers={"x-forwarded-for": next(forwarded)}).status_code == 429:
                return n
    return 60


def test_forged_addresses_give_no_further_tries(site: Site) -> None:
    assert tries(site.port, (f"10.1.2.{n}" for n in range(60))) < 60


def test_a_named_proxy_tells_clients_apart(site: Site, tmp_path: Path) -> None:
    with ServedPage(tmp_path / "run", [], "--behind-proxy", "127.0.0.0/8") as page:
        port = urlsplit(page.address).port or 0
        assert tries(port, itertools.repeat("10.1.2.3")) < 60
        assert tries(port, (f"10.9.9.9, 10.2.2.{n}" for n in range(60))) == 60  # the last is what the proxy itself saw
        assert tries(port, (f"10.2.3.{n}, 10.1.2.3" for n in range(60))) < 20
        response = httpx.get(page.links["owner"], headers={"x-forwarded-proto": "https"}, timeout=SECONDS)
        assert "secure" in response.headers["set-cookie"].lower()


def test_proxies_are_named_by_address(tmp_path: Path) -> None:
    for name in ("*", "proxy.example.org", "10.0.0.1/8"):
        result = cli_runs.call("serve", None, str(tmp_path), "--behind-proxy", name)
        assert result.status == 2
        assert "--behind-proxy" in result.err
        assert name in result.err


def test_names_under_which_a_page_is_served() -> None:
    from lightning_annot.serve.guard import Hosts

    private = Hosts.of("127.0.0.1", "https://label.example.org/")
    assert private.allow("label.example.org")
    assert private.allow("Label.Example.org:443")
    assert not private.allow("example.org")
    assert not private.allow("192.168.0.7:8765")
    public = Hosts.of("0.0.0.0", "http://0.0.0.0:8765")
    assert public.allow("192.168.0.7:8765")
    assert public.allow("[fe80::1]:8765")
    assert not public.allow("evil.test:8765")
    assert Hosts().allow("anything")


def test_a_folder_of_images_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "ant").mkdir()
    result = cli_runs.run("serve", str(tmp_path), "--port", "0")
    assert result.returncode == 2
    assert f"{tmp_path} is no run's folder: it holds 'ant', and none of" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["ant"]
