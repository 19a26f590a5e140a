"""A real Label Studio server for tests, and people who answer in it over HTTP."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from ports import free_port

OWNER, PASSWORD, TOKEN = "ann@example.org", "quite-a-secret", "0123456789abcdef0123456789abcdef01234567"
START_SECONDS = 600  # some hundred migrations of its database: 40 s where nothing else runs

Opinion = Callable[[str], tuple[str | None, float]]
"""Label (None: a skip) and seconds for an item."""


def command() -> str | None:
    """The label-studio command: of the variable LABEL_STUDIO, or on the path."""
    return os.environ.get("LABEL_STUDIO") or shutil.which("label-studio")


@dataclass
class Person:
    """Somebody with an account, and what they have said: label and seconds by number of the question."""

    url: str
    email: str
    token: str
    given: dict[int, tuple[str | None, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.http = httpx.Client(base_url=self.url, headers={"Authorization": f"Token {self.token}"}, timeout=60)

    def call(self, method: str, path: str, **more: Any) -> Any:
        """JSON of a request that must succeed."""
        response = self.http.request(method, path, **more)
        assert response.is_success, response.text
        return response.json()

    def tasks(self, project: int) -> list[dict[str, Any]]:
        """All tasks with all there is about them."""
        found = self.call("GET", "/api/tasks", params={"project": project, "fields": "all", "page_size": 1000})
        assert found["total"] == len(found["tasks"])
        return found["tasks"]

    def project(self, title: str) -> int:
        """Number of the one project of that title; 0 if there is none."""
        found = [p["id"] for p in self.call("GET", "/api/projects", params={"title": title})["results"]]
        assert len(found) <= 1
        return found[0] if found else 0

    def next(self, project: int, tab: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """The task that the page would show next: among those of a tab, or of all that wait for anyone."""
        if tab is None:
            response = self.http.get(f"/api/projects/{project}/next/")
        else:
            params = {"id": "next_task", "project": project}
            response = self.http.post("/api/dm/actions", params=params, json={"filters": tab["data"]["filters"]})
        assert response.status_code in (200, 404), response.text
        return response.json() if response.status_code == 200 else None

    def annotate(self, task: Mapping[str, Any], label: str | None, seconds: float, remember: bool = True) -> int:
        """Submit or skip; returns the annotation's number."""
        result = [{"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": [label]}}]
        body = {"result": result if label is not None else [], "was_cancelled": label is None, "lead_time": seconds}
        made = self.call("POST", f"/api/tasks/{task['id']}/annotations/", json=body)
        if remember:
            self.given[question_of(task)] = label, seconds
        return made["id"]

    def work(self, project: int, opinion: Opinion, most: int | None = None, by_tab: bool = False) -> int:
        """Answer what there is, up to ``most``; returns how many."""
        tab = None
        if by_tab:
            tabs = self.call("GET", "/api/dm/views", params={"project": project})
            (tab,) = [tab for tab in tabs if tab["data"]["title"] == self.email]
        done = 0
        while (most is None or done < most) and (task := self.next(project, tab)) is not None:
            self.annotate(task, *opinion(task["data"]["task"]))
            done += 1
        return done


def question_of(task: Mapping[str, Any]) -> int:
    """The log's number of the question that a task is."""
    return int(task["data"]["question"].partition("-")[0])


@dataclass(frozen=True)
class Server:
    """A running server, its two people, and the folder it serves as local files."""

    url: str
    ann: Person
    bob: Person
    files: Path


@contextmanager
def running(folder: Path) -> Iterator[Server]:
    """The server with data of its own in ``folder``, until the end; two accounts."""
    files, data, log = folder / "files", folder / "data", folder / "server.log"
    files.mkdir()
    url = f"http://localhost:{free_port()}"
    quiet = {
        "LABEL_STUDIO_BASE_DATA_DIR": str(data),
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(folder),
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
    }
    inherited = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    words = [str(command()), "start", "--no-browser", "--port", url.rpartition(":")[2], "--data-dir", str(data)]
    words += ["--username", OWNER, "--password", PASSWORD, "--user-token", TOKEN]
    with open(log, "w") as output:
        process = subprocess.Popen(
            words, env=inherited | quiet, cwd=folder, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _await(process, url, log)
        yield Server(url, Person(url, OWNER, TOKEN), _invited(url, "bob@example.org"), files)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _await(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=5).is_success:
                return
        except httpx.HTTPError:
            time.sleep(0.5)
    raise RuntimeError(f"Label Studio does not start:\n{log.read_text()[-2000:]}")


def _invited(url: str, email: str) -> Person:
    """A second account, made through the link that the owner sends, with the token that its page shows."""
    owner = Person(url, OWNER, TOKEN)
    link = owner.call("GET", "/api/invite")["invite_url"]
    with httpx.Client(base_url=url, timeout=60, headers={"Referer": url}) as browser:
        browser.get(link)
        form = {"email": email, "password": PASSWORD, "csrfmiddlewaretoken": browser.cookies["csrftoken"]}
        assert browser.post(link, data=form).status_code == 302
        return Person(url, email, browser.get("/api/current-user/token").json()["token"])


@contextmanager
def line_to(url: str, port: int) -> Iterator[None]:
    """A line from ``port`` to the server, which is down after the end: no connection is left open."""
    target = httpx.URL(url)
    stop, ends, pumps = threading.Event(), [], []
    with socket.create_server(("localhost", port)) as listener:
        listener.settimeout(0.1)

        def accept() -> None:
            while not stop.is_set():
                try:
                    near, _ = listener.accept()
                except TimeoutError:
                    continue
                far = socket.create_connection((target.host, target.port))
                ends.extend((near, far))
                for one, other in ((near, far), (far, near)):
                    pumps.append(threading.Thread(target=_pump, args=(one, other)))
                    pumps[-1].start()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            for end in ends:
                _hang_up(end)
            for pump in pumps:
                pump.join()
            for end in ends:
                end.close()


def _pump(one: socket.socket, other: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)
    _hang_up(one)
    _hang_up(other)


def _hang_up(end: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is down already
        end.shutdown(socket.SHUT_RDWR)
