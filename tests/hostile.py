"""Requests that a labelling page must refuse."""

from __future__ import annotations


def given(question: int, label: str | None = "cat", reason: str | None = None, seconds: float = 1.0) -> dict[str, object]:
    return {"question": question, "label": label, "reason": reason, "seconds": seconds}


def hostile() -> list[tuple[str, str, dict[str, object]]]:
    """Requests that must be refused: method, path, arguments. Question 2 is bob's, and ann has 1, 3 and 4."""
    answer = {"json": given(1)}
    paths = [
        "/image/2",
        "/image/99",
        "/image/0",
        "/image/-1",
        "/image/a.jpg",
        "/image/1e3",
        "/image/../secret.txt",
        "/image/%2e%2e%2fsecret.txt",
        "/image//etc/passwd",
        "/image/..%5csecret.txt",
        "/image/1/../../secret.txt",
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2f..%2fapp.py",
        "/static//etc/passwd",
        "/annotations.db",
        "/task.json",
        "/photos/a.jpg",
        "/docs",
        "/openapi.json",
        "/redoc",
        "/w/",
        "/w/x",
        "/w/" + "a" * 22,
        "/w/" + "a" * 900,
        "/o/x",
        "/owner",
        "/example/-1/0",
        "/example/99/0",
        "/example/0/0",
        "/example/0/9",
        "/example/0/-1",
        "/example/x/0",
        "/image/" + "9" * 40,
        "/image/1%00",
        "/static/%00",
        "/" + "a" * 2000,
        "/?" + "a" * 2000,
    ]
    found = [("GET", path, {}) for path in paths]
    bodies: list[object] = [
        given(2),
        given(99),
        given(0),
        given(-1),
        given(1 << 40),
        given(1, "cow"),
        given(1, ""),
        given(1, "<script>"),
        given(1, None),
        given(1, "cat", "skip"),
        given(1, None, "bored"),
        given(1, "cat", None, -1),
        given(1, "cat", None, 1e9),
        {**given(1), "worker": "bob"},
        {**given(1), "source": "owner"},
        {"question": 1},
        {},
        [],
        [given(1)],
        "cat",
        1,
        None,
        {**given(1), "question": "1"},
        {**given(1), "question": 1.5},
        {**given(1), "question": True},
        {**given(1), "label": 3},
        {**given(1), "label": ["cat"]},
        {**given(1), "seconds": "1"},
        given(1, "c" * 5000),
        given(1, "cat\x00"),
        {**given(1), "seconds": None},
    ]
    found += [("POST", "/api/answer", {"json": body}) for body in bodies]
    raw = [
        b"",
        b"{",
        b'{"question": 1',
        b"\xff\xfe",
        b"null",
        b"[" * 9000,
        b"x" * 100_000,
        b"{}" + b" " * 20_000,
        b'{"question":1,"label":"cat","seconds":NaN}',
        b'{"question":1,"label":"cat","seconds":Infinity}',
    ]
    json_type = {"content-type": "application/json"}
    found += [("POST", "/api/answer", {"content": body, "headers": json_type}) for body in raw]
    found += [
        ("POST", "/api/next", {"json": body}) for body in ({"n": 0}, {"n": -1}, {"n": 10**9}, {"n": "1"}, {}, {"n": 1, "x": 1})
    ]
    foreign = [
        {"origin": "http://evil.test"},
        {"origin": "null"},
        {"origin": "http://page.test.evil.test"},
        {"origin": "http://page.test:81"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ]
    found += [("POST", "/api/answer", {**answer, "headers": headers}) for headers in foreign]
    form = {"question": "1", "label": "cat", "seconds": "1"}
    found += [("POST", "/api/answer", {"data": form}), ("POST", "/api/answer", {"files": {"x": b"1"}})]
    found += [("POST", "/api/answer", {"content": b"{}", "headers": {"content-type": "text/plain"}})]
    found += [("POST", "/api/answer", {**answer, "headers": {"content-length": "999999", **json_type}})]
    found += [(method, "/api/answer", answer) for method in ("PUT", "PATCH", "DELETE")]
    found += [
        ("GET", "/api/answer", {}),
        ("GET", "/api/next", {}),
        ("DELETE", "/image/1", {}),
        ("POST", "/image/1", {"json": {}}),
    ]
    return [(method, path, dict(arguments)) for method, path, arguments in found]
