"""The few calls of Label Studio's REST interface that are needed, over plain HTTP."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import httpx

from lightning_annot.names import clean
from lightning_annot.types import AnnotError
from lightning_annot.workers.waiting import AwayError

TOKEN_VARIABLE = "LABEL_STUDIO_API_KEY"

_SECONDS = 120.0  # an import of many tasks takes its time
_PAGE = 500  # tasks of one answer of the server
_BATCH = 500  # tasks of one import
_TASK_FIELDS = "id,data,updated_at,is_labeled,annotations,result,completed_by,was_cancelled,ground_truth,lead_time"


class LabelStudio:
    """One project of a Label Studio server, or all of a server before ``project`` is set.

    The token is read from the environment and stays in the header of requests; nothing else ever shows it. Calls raise
    AwayError where trying again may help, else AnnotError.
    """

    def __init__(self, url: str, seconds: float | None = None) -> None:
        token = os.environ.get(TOKEN_VARIABLE, "").strip()
        if not (token and token.isascii() and token.isprintable()):
            raise AnnotError(
                f"Label Studio needs a token, and {TOKEN_VARIABLE} is empty or no token; copy yours from the page Account & "
                f"Settings of Label Studio and export it as {TOKEN_VARIABLE}."
            )
        try:
            parts = httpx.URL(url)
        except (httpx.InvalidURL, TypeError) as error:
            raise AnnotError(f"workers.url {url!r} given; it must be like http://localhost:8080 ({error}).") from error
        if parts.scheme not in ("http", "https") or not parts.host or parts.userinfo:
            raise AnnotError("workers.url must be like http://localhost:8080: http or https, a host, and no password in it.")
        self.url = str(parts).rstrip("/")
        self.project = 0
        auth = _Personal(token, self.url) if token.count(".") == 2 else _Legacy(token)
        self._client = httpx.Client(base_url=self.url, auth=auth, timeout=seconds or _SECONDS)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def check(self) -> None:
        """See that the token opens the server."""
        self._call("GET", "/api/current-user/whoami")

    def find_project(self, title: str) -> dict[str, Any] | None:
        """The project of that title, made ours by ``create_project`` or by hand; None if there is none."""
        found = [p for p in self._pages("/api/projects", {"title": title}) if p["title"] == title]
        if len(found) > 1:
            raise AnnotError(
                f"{self.url} has {len(found)} projects named {title!r}; rename all but one, or set workers.project."
            )
        return self._take(self._call("GET", f"/api/projects/{found[0]['id']}")) if found else None

    def create_project(self, title: str, config: str, predictions: bool) -> dict[str, Any]:
        """A project where each task is for one annotator and a skip counts; ``predictions`` are shown or not."""
        settings = {
            "title": title,
            "label_config": config,
            "maximum_annotations": 1,
            "skip_queue": "IGNORE_SKIPPED",
            "show_collab_predictions": predictions,
        }
        return self._take(self._call("POST", "/api/projects", json=settings))

    def _take(self, project: dict[str, Any]) -> dict[str, Any]:
        self.project = int(project["id"])
        return project

    def emails(self) -> dict[int, str]:
        """What to call each user: the e-mail address, else the name, else the number."""
        users = self._call("GET", "/api/users/")
        return {user["id"]: clean(user["email"] or user["username"]) or str(user["id"]) for user in users}

    def count(self) -> int:
        """Tasks of the project."""
        return int(self._call("GET", "/api/tasks", params={**self._mine(), "page_size": 1, "include": "id"})["total"])

    def keys(self, name: str) -> list[tuple[int, str]]:
        """Id of each task of the project, and what its data has as ``name``, "" where it has nothing."""
        tasks = self._tasks({"include": "id,data"})
        return [(task["id"], str(task["data"].get(name, ""))) for task in tasks]

    def changed_since(self, moment: str | None) -> list[dict[str, Any]]:
        """Tasks with their annotations, those that changed after ``moment`` (the server's ISO 8601), or all."""
        rules = [] if moment is None else [_rule("updated_at", "greater", "Datetime", moment)]
        return list(self._tasks({"fields": "all", "include": _TASK_FIELDS}, rules))

    def push(self, tasks: Sequence[Mapping[str, Any]]) -> list[int]:
        """Import tasks, some hundred a request; returns their ids, in order."""
        ids: list[int] = []
        for start in range(0, len(tasks), _BATCH):
            batch = list(tasks[start : start + _BATCH])
            path = f"/api/projects/{self.project}/import"
            made = self._call("POST", path, params={"return_task_ids": "true"}, json=batch).get("task_ids", ())
            if len(made) != len(batch):
                raise AnnotError(
                    f"{self.url} did not say which {len(batch)} tasks it made; servers that import in the background (Label "
                    "Studio Enterprise) are not supported."
                )
            ids += made
        return ids

    def offer_again(self, task: int, annotations: int) -> None:
        """Let one person more than the ``annotations`` so far have the task."""
        self._call("PATCH", f"/api/tasks/{task}/", json={"overlap": annotations + 1, "is_labeled": False})

    def uploads(self) -> dict[str, str]:
        """Address of each file that was uploaded to the project, by the name it was given."""
        path = f"/api/projects/{self.project}/file-uploads"
        return dict(map(_named, self._call("GET", path, params={"all": "true"})))

    def upload(self, files: Mapping[str, bytes]) -> dict[str, str]:
        """Put up to 100 files on the server; returns their addresses by name."""
        path = f"/api/projects/{self.project}/"
        parts = {f"file{i}": (name, content) for i, (name, content) in enumerate(files.items())}
        made = self._call("POST", path + "import", params={"commit_to_project": "false"}, files=parts)
        uploads = self._call("GET", path + "file-uploads", params={"ids": json.dumps(made["file_upload_ids"])})
        return dict(map(_named, uploads))

    def tabs(self) -> set[str]:
        """Titles of the project's tabs."""
        return {tab["data"].get("title", "") for tab in self._call("GET", "/api/dm/views", params=self._mine())}

    def add_tab(self, title: str, key: str) -> None:
        """A tab of the tasks whose data has ``title`` as ``key``."""
        rule = _rule(f"data.{key}", "equal", "String", title)
        data = {"title": title, "type": "list", "target": "tasks", "filters": {"conjunction": "and", "items": [rule]}}
        self._call("POST", "/api/dm/views", params=self._mine(), json={**self._mine(), "data": data})

    def _mine(self) -> dict[str, Any]:
        return {"project": self.project}

    def _tasks(self, params: Mapping[str, Any], rules: Sequence[Mapping[str, str]] = ()) -> Iterator[dict[str, Any]]:
        """Tasks that meet all ``rules``, by id; by pages that start after the last id, so that none is missed or seen twice."""
        last: int | None = 0
        while last is not None:
            after = _rule("id", "greater", "Number", last)
            query = {"filters": {"conjunction": "and", "items": [*rules, after]}, "ordering": ["tasks:id"]}
            more = {"page_size": _PAGE, "query": json.dumps(query)}
            tasks = self._call("GET", "/api/tasks", params={**self._mine(), **params, **more})["tasks"]
            yield from tasks
            last = tasks[-1]["id"] if len(tasks) == _PAGE else None

    def _pages(self, path: str, params: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        page, more = 1, True
        while more:
            found = self._call("GET", path, params={**params, "page": page, "page_size": 100, "include": "id,title"})
            page, more = page + 1, bool(found["next"])
            yield from found["results"]

    def _call(self, method: str, path: str, **more: Any) -> Any:
        """The answer's JSON."""
        try:
            response = self._client.request(method, path, **more)
        except httpx.HTTPError as error:
            raise AwayError(f"Label Studio at {self.url} cannot be reached ({type(error).__name__}: {error})") from error
        status = response.status_code
        if status >= 500 or status == 429:
            raise AwayError(f"Label Studio at {self.url} cannot answer now (status {status})")
        try:
            if response.is_success:
                return response.json() if response.content else None
        except ValueError:
            status = 0
        raise AnnotError(f"Label Studio at {self.url}: {_problem(status, method, path, response)}")


def _rule(column: str, operator: str, kind: str, value: object) -> dict[str, Any]:
    """One condition on tasks."""
    return {"filter": f"filter:tasks:{column}", "operator": operator, "type": kind, "value": value}


def _problem(status: int, method: str, path: str, response: httpx.Response) -> str:
    if status in (401, 403):
        return (
            f"the token in {TOKEN_VARIABLE} is not accepted (status {status}); copy it anew, or switch legacy tokens on "
            "(LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN=true) if it is one."
        )
    if status == 404:
        return f"there is no {path}; was the project deleted? Check workers.url and workers.project."
    if status == 0 or response.is_redirect:
        return f"{path} gives no JSON (status {response.status_code}); check that workers.url is that of Label Studio."
    return f"{method} {path} was refused (status {status}): {response.text[:500]}"


def _named(upload: Mapping[str, Any]) -> tuple[str, str]:
    """The name that a file was given, to which the server adds eight digits and a hyphen, and its address."""
    return PurePosixPath(upload["file"]).name.partition("-")[2], f"/data/{upload['file']}"


class _Legacy(httpx.Auth):
    """A token that requests show as it is."""

    def __init__(self, token: str) -> None:
        self._token = token

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = f"Token {self._token}"
        yield request


class _Personal(httpx.Auth):
    """A token that buys others, which requests show for some minutes."""

    requires_response_body = True

    def __init__(self, token: str, url: str) -> None:
        self._token, self._url, self._access = token, f"{url}/api/token/refresh", ""

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if self._access:
            request.headers["Authorization"] = f"Bearer {self._access}"
            response = yield request
            if response.status_code != 401:
                return
        fresh = yield httpx.Request("POST", self._url, json={"refresh": self._token})
        if fresh.is_success:
            self._access = fresh.json()["access"]
            request.headers["Authorization"] = f"Bearer {self._access}"
        yield request
