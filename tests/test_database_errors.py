"""Whatever the database does, people read a sentence, and what was committed stays."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from PIL import Image
from sqlalchemy import text

from lightning_annot import locks
from lightning_annot.__main__ import main
from lightning_annot.annotations import schema
from lightning_annot.annotations.desk import Desk
from lightning_annot.annotations.failures import DatabaseError
from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.callbacks.preflight import refuse_study
from lightning_annot.data.items import build_items
from lightning_annot.data.page_task import TASK_FILE, ImageSettings, PageTask
from lightning_annot.types import AnnotError, Answer, Question


def fill(path: Path, n: int = 3000) -> None:
    with AnnotationLog(path) as log:
        log.ask([Question(f"item{i:06d}", None) for i in range(n)])
        log.answer([Answer(i + 1, f"worker {i % 50}", "cat") for i in range(n)])
        Desk(log)


def said(call: Callable[[], object]) -> str:
    """The sentence with which ``call`` fails; empty where it does not."""
    try:
        call()
    except DatabaseError as error:
        return str(error)
    return ""


def damage_pages(path: Path) -> None:
    """Overwrite all pages but the first few, which hold the schema, the identity, and a part of the rows."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 4)
        file.write(os.urandom(size // 2))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 3)


@pytest.mark.parametrize("damage", [damage_pages, cut])
def test_a_damaged_file_says_so_wherever_it_is_met(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    from lightning_annot.serve.tally import Tally

    path = tmp_path / "annotations.db"
    fill(path)
    damage(path)
    opened = said(lambda: AnnotationLog(path).close())
    if damage is cut:
        assert "annotations.db cannot be opened" in opened
        assert "put a backup in its place" in opened
        return
    with AnnotationLog(path) as log:
        calls: list[Callable[[], object]] = [
            log.answers,
            log.questions,
            lambda: log.record([(Question("item000001", "zoe"), Answer(0, "zoe", "cat"))]),
            lambda: Tally(log).stamp,
            lambda: Desk(log).stuck(),
            lambda: Desk(log).lend([("zoe", 10)]),
        ]
        met = [told for call in calls if (told := said(call))]
    assert len(met) >= 3
    assert all("the file is damaged" in told for told in met)


def test_what_is_no_whole_log_is_refused_and_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    path = run / "annotations.db"
    for content, told in ((b"", "holds no annotation log"), (b"task,worker,label\n" * 100, "file is not a database")):
        path.write_bytes(content)
        for words in (["export", str(run), str(tmp_path / "out.csv")], ["scorecards", str(run)]):
            assert main(words) == 2
            assert told in capsys.readouterr().err
        assert path.read_bytes() == content
        assert [file.name for file in run.iterdir()] == ["annotations.db"]


@pytest.mark.parametrize(
    ("statement", "missing"),
    [("DROP TABLE answer", "answer"), ("ALTER TABLE question RENAME COLUMN item TO thing", "question.item")],
)
def test_a_missing_part_is_named(log_url: str, statement: str, missing: str) -> None:
    with AnnotationLog(log_url) as log:
        if log_url.startswith("postgresql"):
            with log.writing() as connection:
                connection.execute(text(statement))
        else:
            with sqlite3.connect(log_url.removeprefix("sqlite:///")) as raw:
                raw.execute(statement)
        with pytest.raises(DatabaseError, match="lacks a part of the annotation log"):
            log.answers()
    for create in (True, False):
        with pytest.raises(AnnotError, match=f"lacks {missing}"):
            AnnotationLog(log_url, create=create)


@pytest.mark.parametrize("name", ["a\0b", "a\ud800", "line\nend", "\x1b[31m"])
def test_names_that_cannot_be_stored_are_refused_first(log_url: str, name: str) -> None:
    with AnnotationLog(log_url) as log:
        log.ask([Question("a", None)])
        for refused in (
            lambda: log.ask([Question("b", None), Question(name, None)]),
            lambda: log.ask([Question("b", name)]),
            lambda: log.answer([Answer(1, name, "cat")]),
            lambda: log.answer([Answer(1, "ann", name)]),
            lambda: log.record([(Question(name, None), Answer(0, "ann", "cat"))]),
        ):
            with pytest.raises(AnnotError, match=r"1 .* hold a control character.* rename them"):
                refused()
        desk = Desk(log)
        for call in (lambda: desk.pause("ann", name), lambda: desk.paused(name)):  # past the checks: some databases take it
            told = said(call)
            assert (told == "") or "cannot be" in told
        assert len(log.questions()) == 1
        assert log.answers().empty
    for ids, classes in (([name, "b", "c"], ["cat", "dog"]), (["a", "b", "c"], ["cat", name])):
        with pytest.raises(AnnotError, match="rename them"):
            build_items(ids, classes, None, {"b": "cat"}, prototypes_per_class=0, n_folds=2, seed=0)


def test_a_read_only_server_can_be_read(postgres_server: str) -> None:
    from postgres import new_database

    url = new_database(postgres_server)
    with AnnotationLog(url) as log:
        log.ask([Question("a", None)])
        with log.writing() as connection:
            connection.execute(text(f'ALTER DATABASE "{url.rpartition("/")[2]}" SET default_transaction_read_only = on'))
    with AnnotationLog(url, create=False) as log:
        assert log.questions()["item"].tolist() == ["a"]
    with AnnotationLog(url) as log:
        with pytest.raises(DatabaseError, match=r"cannot be written .*this account may only read it"):
            log.answer([Answer(1, "ann", "cat")])
        with pytest.raises(DatabaseError, match="read-only"):
            Desk(log)
    with AnnotationLog(new_database(postgres_server)) as other:
        other.ask([Question("a", None)])


def test_a_connection_that_is_lost_in_the_middle(postgres_server: str) -> None:
    import psycopg
    from postgres import new_database

    url = new_database(postgres_server)
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"

    def drop() -> None:
        with psycopg.connect(postgres_server, autocommit=True) as connection:
            connection.execute(end, (url.rpartition("/")[2],))

    with AnnotationLog(url) as log:
        log.ask([Question("a", None)])

        def read() -> None:
            with log.reading() as connection:
                drop()
                connection.execute(text("SELECT * FROM question"))

        def write() -> None:
            with log.writing() as connection:
                connection.execute(text("INSERT INTO identity VALUES ('half', '1')"))
                drop()
                connection.execute(text("INSERT INTO identity VALUES ('whole', '1')"))

        assert "cannot be read" in said(read)
        assert "nothing of this batch was stored" in said(write)
        drop()
        assert log.identity() == {}
        assert log.answer([Answer(1, "ann", "cat")]) == 1


def test_looking_makes_nothing(new_log_url: Callable[[], str], tmp_path: Path) -> None:
    url = new_log_url()
    refuse_study(url)
    assert not schema.has_log(url)
    for path in (tmp_path / "there" / "a.db", str(tmp_path / "there" / "a.db"), f"sqlite:///{tmp_path}/there/a.db"):
        refuse_study(path)
        with pytest.raises(AnnotError, match="no annotation log"):
            AnnotationLog(path, create=False)
    assert not (tmp_path / "there").exists()
    assert not list(tmp_path.iterdir())
    with AnnotationLog(url) as log:
        log.claim({schema.STUDY: "x"})
    with pytest.raises(AnnotError, match="of a confusion study"):
        refuse_study(url)
    with AnnotationLog(url) as log, pytest.raises(AnnotError, match="belongs to another run"):
        log.claim({"items": "3 items, abc"})


def test_a_wait_for_another_writer_is_told(
    log_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.2)
    with AnnotationLog(log_url) as log, AnnotationLog(log_url) as other:
        log.ask([Question("a", None)])
        assert not caplog.records
        with other.writing():
            waiting = threading.Thread(target=lambda: log.answer([Answer(1, "ann", "cat")]))
            waiting.start()
            time.sleep(0.7)
        waiting.join()
        assert len(log.answers()) == 1
    told = [record.message for record in caplog.records]
    assert len(told) == 1
    assert told[0].startswith("waiting for another process that writes to ")
    assert told[0].split("/")[-1].startswith("log")


def test_one_lock_for_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    lock = locks.alone_in(tmp_path, "fit", "wait for it")
    with pytest.raises(AnnotError, match=r"another fit is running in .*; wait for it\."):
        locks.alone_in(tmp_path, "fit", "wait for it", seconds=0.4)
    assert [record.message for record in caplog.records] == [f"waiting for another process that writes to {tmp_path} ..."]
    lock.release()
    locks.alone_in(tmp_path, "fit", "wait for it").release()
    assert not FileLock(tmp_path / ".lock").is_locked


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder with a log on a file system that is mounted read-only."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "none", str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        fill(folder / "annotations.db", 3)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_folder(read_only: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AnnotError, match=r"annotations\.db cannot be"):
        AnnotationLog(read_only / "annotations.db")
    with pytest.raises(AnnotError, match=r"\.lock cannot be written"):
        locks.alone_in(read_only, "fit", "")
    assert main(["export", str(read_only), str(read_only / "out.csv")]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_the_page_says_try_again_and_means_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = pytest.importorskip("fastapi.testclient").TestClient
    from lightning_annot.serve.app import RETRY_SECONDS, make_app

    monkeypatch.setattr(schema, "_SQLITE_PRAGMAS", ("busy_timeout = 50",))
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "photos" / "a.png")
    task = PageTask(("cat", "dog"), ("cat", "dog"), {}, ImageSettings(str(tmp_path / "photos")))
    (tmp_path / TASK_FILE).write_text(task.to_json())
    with AnnotationLog(tmp_path / "annotations.db") as log:
        log.ask([Question("a.png", None)])
        app, raw = make_app(tmp_path, log, "secret"), sqlite3.connect(tmp_path / "annotations.db", isolation_level=None)
        with client(app, base_url="http://page.test", raise_server_exceptions=False) as page:
            page.get(f"/w/{Desk(log).invite('ann')}")
            page.get("/o/secret")
            answer = {"question": 1, "label": "cat", "reason": None, "seconds": 1.0}

            def sent() -> list[int]:
                replies = [page.post("/api/next", json={"n": 3}), page.post("/api/answer", json=answer), page.get("/image/1")]
                replies += [page.get(path) for path in ("/owner", "/owner/answers.csv", "/owner/export/crowd-kit")]
                pause = {"action": "pause", "worker": "bob"}
                replies += [page.post("/owner/act", json=pause), page.post("/owner/act", json={**pause, "action": "invite"})]
                for reply in replies:
                    assert ("retry-after" in reply.headers) == (reply.status_code == 503)
                    assert reply.headers.get("retry-after", str(RETRY_SECONDS)) == str(RETRY_SECONDS)
                return [reply.status_code for reply in replies]

            raw.execute("BEGIN IMMEDIATE")
            assert sent() == [503, 503, 404, 200, 200, 200, 503, 503]  # what reads waits for nobody
            raw.execute("ROLLBACK")
            raw.execute("ALTER TABLE question RENAME TO away")
            assert sent() == [503, 503, 503, 503, 503, 503, 200, 200]
            html = page.get("/owner", headers={"accept": "text/html"})
            assert html.headers["content-type"].startswith("text/html")
            assert "no such table: question" in html.text
            raw.execute("ALTER TABLE away RENAME TO question")
            assert sent() == [200] * 8
            for act in ({"action": "pause", "worker": "a\0"}, {"action": "pause", "worker": "a", "reason": "\0"}):
                assert page.post("/owner/act", json=act).status_code == 422
            monkeypatch.setattr(Desk, "lent", lambda self: 1 // 0)
            failed = page.get("/owner")
            assert (failed.status_code, failed.headers["retry-after"]) == (503, str(RETRY_SECONDS))
            assert "division" not in failed.text
        raw.close()
        assert log.answers()["label"].tolist() == ["cat"]
