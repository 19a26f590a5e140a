"""A team's log: several writers at once, in a file and on a server; nothing twice, nothing missed, no password kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cli_runs import Bank, call

from lightning_annot.annotations.desk import Desk
from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.annotations.schema import open_engine, refuse_password
from lightning_annot.types import AnnotError, Answer, Question

WRITERS = 6


def at_once(work: Callable[[int], None], n: int = WRITERS) -> None:
    """``work(i)`` in n threads; raises what any of them raised."""
    with ThreadPoolExecutor(n) as pool:
        list(pool.map(work, range(n)))


def test_many_open_a_new_log_at_once(log_url: str) -> None:
    def work(i: int) -> None:
        with AnnotationLog(log_url) as log:
            Desk(log).invite(f"w{i}")
            log.ask([Question(str(i), None)])

    at_once(work)
    with AnnotationLog(log_url) as log:
        assert log.questions()["id"].tolist() == list(range(1, WRITERS + 1))


def test_whoever_reads_after_an_id_misses_no_answer(log_url: str) -> None:
    """Ids become visible in their order: a reader that goes on after the last id it saw sees all of them, once."""
    n, seen, done = 40, [], threading.Event()
    with AnnotationLog(log_url) as log:
        log.ask([Question(str(i), None) for i in range(WRITERS * n)])

    def read() -> None:
        with AnnotationLog(log_url) as log:
            while True:
                last = done.is_set()
                seen.extend(log.answers(after_id=seen[-1] if seen else 0)["id"].tolist())
                if last:
                    return

    def write(i: int) -> None:
        with AnnotationLog(log_url) as log:
            for k in range(n):
                log.answer([Answer(1 + i * n + k, f"w{i}", "cat")])

    reader = threading.Thread(target=read)
    reader.start()
    at_once(write)
    done.set()
    reader.join()
    assert seen == list(range(1, WRITERS * n + 1))


def test_two_pages_lend_no_question_twice_and_take_no_answer_twice(log_url: str) -> None:
    """Every worker is at two pages at once, whose desks do not know of each other."""
    n = 60
    with AnnotationLog(log_url) as log:
        log.ask([Question(f"i{k % (n // 2)}", None) for k in range(n)])  # each item twice: for two workers
    lent: list[tuple[int, str]] = []

    def work(i: int) -> None:
        worker, empty = f"w{i // 2}", 0
        with AnnotationLog(log_url) as log:
            desk = Desk(log)
            while empty < 3:
                (questions,) = desk.lend([(worker, 3)])
                lent.extend((question, worker) for question in questions)
                outcome = desk.take([Answer(question, worker, "cat", 1.0, "page") for question in questions])
                assert None not in outcome
                empty = 0 if questions else empty + 1
                time.sleep(0 if questions else 0.01)

    at_once(work)
    with AnnotationLog(log_url) as log:
        answers = log.answers()
    assert not answers.duplicated("question").any()
    assert not answers.duplicated(["item", "worker"]).any()
    assert len({question for question, _ in lent}) == len(set(lent))  # nobody else had it
    assert len(answers) == n


def test_a_desk_sees_what_was_closed_elsewhere(log_url: str) -> None:
    """The shortcut past closed questions is each page's own, and holds for what others ask and answer."""
    with AnnotationLog(log_url) as one, AnnotationLog(log_url) as two:
        here, there = Desk(one), Desk(two)
        one.ask([Question("a", None), Question("b", None)])
        assert here.deal([], [("ann", 2)])[1][0].questions == [1, 2]
        here.take([Answer(1, "ann", "cat"), Answer(2, "ann", "cat")])
        assert there.lend([("bob", 2)]) == [[]]
        two.ask([Question("c", None)])
        assert here.lend([("bob", 2)]) == [[3]]
        assert there.lend([("eve", 2)]) == [[]]
        assert there.take([Answer(3, "bob", "cat")]) == [True]
        assert here.lend([("bob", 2)]) == [[]]


def test_what_was_not_committed_has_closed_nothing(log_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with AnnotationLog(log_url) as log:
        desk = Desk(log)
        log.ask([Question("a", None)])
        assert desk.lend([("ann", 1)]) == [[1]]
        with pytest.raises(AnnotError, match="impossible time"):
            desk.deal([Answer(1, "ann", "cat", -1.0)], [("ann", 1)])
        with pytest.raises(TypeError):  # after the answer was written, before it was committed
            desk.deal([Answer(1, "ann", "cat")], [("ann", 1), ("bob", "x")])  # type: ignore[list-item]
        assert log.answers().empty
        assert desk.lend([("ann", 1)]) == [[1]]


def test_the_servers_own_defaults_change_nothing(postgres_server: str) -> None:
    """A stricter isolation would let a writer that has waited see an old state; and commits have to be on disk."""
    import psycopg
    from postgres import new_database

    url = new_database(postgres_server)
    name = url.rpartition("/")[2]
    with psycopg.connect(url, autocommit=True) as raw:
        raw.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
        raw.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")

    def work(i: int) -> None:
        with AnnotationLog(url) as log:
            for _ in range(10):
                log.ask([Question(str(i), None)])

    at_once(work)
    with AnnotationLog(url) as log:
        assert log.questions()["id"].tolist() == list(range(1, 10 * WRITERS + 1))
        with log.writing() as connection:
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
            assert connection.exec_driver_sql("SHOW transaction_isolation").scalar() == "read committed"
        with log.reading() as connection:
            assert connection.exec_driver_sql("SHOW transaction_isolation").scalar() == "repeatable read"


def test_a_server_that_is_away(postgres_server: str) -> None:
    with pytest.raises(AnnotError, match="cannot be opened"):
        AnnotationLog("postgresql://annot@127.0.0.1:1/postgres")
    import psycopg
    from postgres import new_database

    with AnnotationLog(new_database(postgres_server)) as log:
        log.ask([Question("a", None)])
        with psycopg.connect(postgres_server, autocommit=True) as raw:  # as a server that starts anew does
            raw.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        assert len(log.questions()) == 1


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:hunter2@db/run",
        "postgresql+psycopg://ann:hunter2@db:5432/run",
        "postgresql://ann@db/run?password=hunter2",
        "postgresql://db/run?user=ann&sslpassword=hunter2",
        "mysql+pymysql://ann:hunter2@db/run",
    ],
)
def test_a_password_in_a_url_is_refused_and_not_repeated(url: str, bank: Bank, tmp_path: Path) -> None:
    for opening in (refuse_password, AnnotationLog):
        with pytest.raises(AnnotError, match=r"holds a password.*~/\.pgpass") as error:
            opening(url)
        assert "hunter2" not in str(error.value)
    given = bank.settings(**{"annotation.log_url": url, "annotation.output_dir": tmp_path / "run"})
    for result in (call("fit", given), call("serve", None, str(tmp_path / "run"), "--port", "0", "--url", url)):
        assert result.status == 2
        assert "holds a password" in result.err
        assert "hunter2" not in result.err + result.out
    assert not any("hunter2" in path.read_text(errors="ignore") for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("url", "opened"),
    [
        ("annotations.db", "sqlite:///annotations.db"),
        ("sqlite:///run.db", "sqlite:///run.db"),
        ("postgresql://ann@db/run?sslmode=require", "postgresql+psycopg://ann@db/run?sslmode=require"),
        ("postgresql:///run", "postgresql+psycopg:///run"),
    ],
)
def test_a_url_without_a_password_is_opened_as_it_is(url: str, opened: str) -> None:
    assert open_engine(url).url.render_as_string(hide_password=False) == opened
