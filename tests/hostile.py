"""Requests that a labelling page must refuse, by what is wrong with them. Question 2 is bob's, and ann has 1, 3 and 4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

JSON = {"content-type": "application/json"}


class Request(NamedTuple):
    """What is wrong with it, and the request; ``arguments`` are those of an HTTP client."""

    name: str
    method: str
    path: str
    arguments: dict[str, Any]


def given(question: int, label: str | None = "cat", reason: str | None = None, seconds: float = 1.0) -> dict[str, Any]:
    """An answer as the page sends it."""
    return {"question": question, "label": label, "reason": reason, "seconds": seconds}


PATHS = {
    "an image of bob's": "/image/2",
    "an image of nobody's": "/image/99",
    "image 0": "/image/0",
    "an image before the first": "/image/-1",
    "an image by its file": "/image/a.jpg",
    "an image by a number in other words": "/image/1e3",
    "an image of 40 digits": "/image/" + "9" * 40,
    "an image and a zero byte": "/image/1%00",
    "up from images": "/image/../secret.txt",
    "up from images, encoded": "/image/%2e%2e%2fsecret.txt",
    "up from images, with a backslash": "/image/..%5csecret.txt",
    "up from an image": "/image/1/../../secret.txt",
    "a file of the machine as an image": "/image//etc/passwd",
    "up from static files": "/static/../app.py",
    "up from static files, dots encoded": "/static/%2e%2e/app.py",
    "up from static files, slashes encoded": "/static/..%2f..%2fapp.py",
    "a file of the machine as a static file": "/static//etc/passwd",
    "a zero byte as a static file": "/static/%00",
    "the log": "/annotations.db",
    "the task": "/task.json",
    "an image where it lies": "/photos/a.jpg",
    "the framework's documentation": "/docs",
    "the framework's schema": "/openapi.json",
    "the framework's other documentation": "/redoc",
    "an empty link": "/w/",
    "a short link": "/w/x",
    "a guessed link": "/w/" + "a" * 22,
    "a link that is too long": "/w/" + "a" * 900,
    "a guessed owner's link": "/o/x",
    "the owner's page": "/owner",
    "an example before the first class": "/example/-1/0",
    "an example after the last class": "/example/99/0",
    "an example of a class without any": "/example/0/0",
    "an example after the last": "/example/0/9",
    "an example before the first": "/example/0/-1",
    "an example of a class by name": "/example/x/0",
    "a long path": "/" + "a" * 2000,
    "a long query": "/?" + "a" * 2000,
}

ANSWERS: dict[str, Any] = {
    "bob's question": given(2),
    "nobody's question": given(99),
    "question 0": given(0),
    "a question before the first": given(-1),
    "a question beyond all numbers": given(1 << 40),
    "an unknown class": given(1, "cow"),
    "an empty class": given(1, ""),
    "a class in markup": given(1, "<script>"),
    "a class of 5,000 letters": given(1, "c" * 5000),
    "a class and a zero byte": given(1, "cat\x00"),
    "no class and no reason": given(1, None),
    "a class and a reason": given(1, "cat", "skip"),
    "an unknown reason": given(1, None, "bored"),
    "a time before the start": given(1, "cat", None, -1),
    "a time of 30 years": given(1, "cat", None, 1e9),
    "in bob's name": {**given(1), "worker": "bob"},
    "with a source": {**given(1), "source": "owner"},
    "a question alone": {"question": 1},
    "an empty object": {},
    "an empty list": [],
    "a list of answers": [given(1)],
    "a text": "cat",
    "a number": 1,
    "null": None,
    "a question as text": {**given(1), "question": "1"},
    "half a question": {**given(1), "question": 1.5},
    "a question that is true": {**given(1), "question": True},
    "a class as number": {**given(1), "label": 3},
    "a list of classes": {**given(1), "label": ["cat"]},
    "a time as text": {**given(1), "seconds": "1"},
    "no time": {**given(1), "seconds": None},
}

BODIES = {
    "no body": b"",
    "an open bracket": b"{",
    "a cut body": b'{"question": 1',
    "no text": b"\xff\xfe",
    "null in bytes": b"null",
    "9,000 brackets": b"[" * 9000,
    "100,000 bytes": b"x" * 100_000,
    "20,000 spaces": b"{}" + b" " * 20_000,
    "a time that is no number": b'{"question":1,"label":"cat","seconds":NaN}',
    "a time without end": b'{"question":1,"label":"cat","seconds":Infinity}',
}

WISHES = {
    "no questions": {"n": 0},
    "fewer than no questions": {"n": -1},
    "a billion questions": {"n": 10**9},
    "questions by text": {"n": "1"},
    "how many questions is left out": {},
    "questions and more": {"n": 1, "x": 1},
}

HEADERS = {
    "from another site": {"origin": "http://evil.test"},
    "from a site without a name": {"origin": "null"},
    "from a site that begins like ours": {"origin": "http://page.test.evil.test"},
    "from another port": {"origin": "http://page.test:81"},
    "across sites": {"sec-fetch-site": "cross-site"},
    "from a sister site": {"sec-fetch-site": "same-site"},
    "longer than it says": {"content-length": "999999", **JSON},
}

FORMS = {
    "a form": {"data": {"question": "1", "label": "cat", "seconds": "1"}},
    "a file": {"files": {"x": b"1"}},
    "plain text": {"content": b"{}", "headers": {"content-type": "text/plain"}},
}

METHODS = [
    ("PUT", "/api/answer", {"json": given(1)}),
    ("PATCH", "/api/answer", {"json": given(1)}),
    ("DELETE", "/api/answer", {"json": given(1)}),
    ("GET", "/api/answer", {}),
    ("GET", "/api/next", {}),
    ("DELETE", "/image/1", {}),
    ("POST", "/image/1", {"json": {}}),
]


def hostile() -> list[Request]:
    """All of them."""
    return [
        *(Request(name, "GET", path, {}) for name, path in PATHS.items()),
        *_posts("/api/answer", {name: {"json": body} for name, body in ANSWERS.items()}),
        *_posts("/api/answer", {name: {"content": body, "headers": JSON} for name, body in BODIES.items()}),
        *_posts("/api/answer", {name: {"json": given(1), "headers": headers} for name, headers in HEADERS.items()}),
        *_posts("/api/answer", FORMS),
        *_posts("/api/next", {name: {"json": body} for name, body in WISHES.items()}),
        *(Request(f"{method} {path}", method, path, arguments) for method, path, arguments in METHODS),
    ]


def _posts(path: str, table: Mapping[str, dict[str, Any]]) -> list[Request]:
    return [Request(name, "POST", path, arguments) for name, arguments in table.items()]
