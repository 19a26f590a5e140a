from __future__ import annotations

from pathlib import Path

import pytest

from lightning_annot.annotations.formats import read_table
from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.ledger import Ledger
from lightning_annot.types import AnnotError, Answer, Question, Task
from lightning_annot.workers.files import FileWorkers

ITEMS = ["a", "b", "c"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "people"


def bound(folder: Path, classes: tuple[str, ...] = ("cat", "dog"), **options: object) -> FileWorkers:
    workers = FileWorkers(str(folder), **options)
    workers.bind(Task(ITEMS, classes, seed=0, output_dir="unused", paths={"a": "images/a.jpg", "b": "images/b.jpg"}))
    return workers


def say(folder: Path, *rows: str, header: str = "task,worker,label") -> None:
    (folder / "answers.csv").write_text("\n".join([header, *rows]) + "\n")


def collect(workers: FileWorkers) -> set[tuple[int, str, str | None]]:
    return {(answer.question, answer.worker, answer.label) for answer in workers.collect()}


def test_questions_are_written_whole_each_time(folder):
    workers = bound(folder, workers=["ann", "bob"])
    assert workers.names() == ["ann", "bob"]
    workers.submit([Question("a", "ann", id=1), Question("c", None, id=2)])
    assert (folder / "questions.csv").read_text() == "task,worker,path\na,ann,images/a.jpg\nc,,\n"
    say(folder, "a,ann,cat")
    assert collect(workers) == {(1, "ann", "cat")}
    assert (folder / "questions.csv").read_text() == "task,worker,path\nc,,\n"
    workers.submit([Question("c", None, id=2), Question("b", "bob", id=3)])
    assert (folder / "questions.csv").read_text() == "task,worker,path\nc,,\nb,bob,images/b.jpg\n"
    workers.submit([])
    assert (folder / "questions.csv").read_text() == "task,worker,path\n"
    assert sorted(entry.name for entry in folder.iterdir()) == ["answers.csv", "questions.csv"]


def test_the_file_is_written_only_when_questions_changed(folder):
    workers = bound(folder)
    workers.submit([Question("a", None, id=1)])
    path = folder / "questions.csv"
    before = path.stat()
    workers.submit([Question("a", None, id=1)])
    assert path.stat().st_ino == before.st_ino
    path.unlink()
    workers.submit([Question("a", None, id=1)])
    assert path.exists()


def test_the_folder_is_the_output_folder_unless_given(tmp_path):
    workers = FileWorkers()
    workers.bind(Task(ITEMS, ["cat"], seed=0, output_dir=str(tmp_path / "run")))
    workers.submit([Question("a", None, id=1)])
    table = read_table(tmp_path / "run" / "questions.csv", ("task", "worker", "path"))
    assert table.to_numpy().tolist() == [["a", "", ""]]


def test_labels_skips_and_blanks(folder):
    workers = bound(folder)
    workers.submit([Question(item, None, id=i) for i, item in enumerate(ITEMS, start=1)])
    say(folder, "a, ann , cat ,2.5", "b,ann,Unsure,", "c,ann,,", header="task,worker,label,seconds")
    answers = {answer.question: answer for answer in workers.collect()}
    assert set(answers) == {1, 2}
    assert (answers[1].worker, answers[1].label, answers[1].seconds) == ("ann", "cat", 2.5)
    assert (answers[2].label, answers[2].seconds) == (None, None)
    say(folder, "a,ann,cat", "b,ann,Unsure", "c,ann,SKIP")
    assert collect(workers) == {(3, "ann", None)}


def test_a_class_may_be_called_skip(folder):
    workers = bound(folder, classes=("Skip", "stay"))
    workers.submit([Question("a", None, id=1), Question("b", None, id=2)])
    say(folder, "a,ann,Skip", "b,ann,unsure")
    assert collect(workers) == {(1, "ann", "Skip"), (2, "ann", None)}
    workers.submit([Question("c", None, id=3)])
    say(folder, "c,ann,skip")
    assert collect(workers) == {(3, "ann", "Skip")}


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("task,label", "b,cat", r"without \['worker'\]"),
        ("task,worker,label", "b;ann;cat", "line 3: 'b;ann;cat'"),
        ("task,worker,label", "z,ann,cat", "task outside the items .*line 3: 'z'"),
        ("task,worker,label", "b,ann,cow", "label outside the classes .*line 3: 'cow'"),
        ("task,worker,label,seconds", "b,ann,cat,soon", "impossible seconds .*line 3"),
    ],
)
def test_a_bad_file_gives_nothing_until_it_is_mended(folder, header, row, message):
    workers = bound(folder)
    workers.submit([Question("a", None, id=1)])
    good = ",".join(["a", "ann", "cat", "1"][: header.count(",") + 1])
    say(folder, good, row, header=header)
    with pytest.raises(AnnotError, match=message):
        workers.collect()
    say(folder, "a,ann,cat")
    assert collect(workers) == {(1, "ann", "cat")}


def test_several_workers_answer_one_item(folder):
    workers = bound(folder)
    workers.submit([Question("a", None, id=1), Question("a", None, id=2)])
    say(folder, "a,ann,cat", "a,ann ,Cat", "a,bob,dog", "a,eve,dog")
    assert collect(workers) == {(1, "ann", "cat"), (2, "bob", "dog")}
    workers.submit([Question("a", None, id=3)])
    assert collect(workers) == {(3, "eve", "dog")}


def test_an_answer_goes_to_the_workers_own_question_first(folder):
    workers = bound(folder, workers=["ann", "bob"])
    workers.submit([Question("a", "ann", id=1), Question("a", "bob", id=2), Question("b", "ann", id=3)])
    say(folder, "a,eve,dog", "a,ann,cat", "b,bob,dog")
    assert collect(workers) == {(1, "ann", "cat"), (2, "eve", "dog"), (3, "bob", "dog")}


def test_used_lines_are_not_used_again_by_another_process(folder):
    bound(folder)
    say(folder, "a,ann,cat", "b,bob,dog")
    workers = bound(folder)
    workers.remember([("a", "ann"), ("b", "bob")])
    workers.submit([Question("a", None, id=7), Question("b", None, id=8)])
    assert collect(workers) == set()
    say(folder, "a,ann,cat", "b,bob,dog", "a,bob,dog")
    assert collect(workers) == {(7, "bob", "dog")}


def test_an_unsigned_answer_is_of_who_was_asked_else_anonymous(folder):
    workers = bound(folder, workers=["ann", "bob"])
    workers.submit([Question("a", "ann", id=1), Question("b", None, id=2), Question("c", "bob", id=3)])
    say(folder, "a,,cat", "b,,cat", "c,bob,cat", "c,,dog")
    assert collect(workers) == {(1, "ann", "cat"), (2, "anonymous", "cat"), (3, "bob", "cat")}


def test_used_unsigned_lines_are_not_used_again(folder):
    bound(folder)
    say(folder, "a,,cat", "a,,dog", "b,,cat", "c,bob,cat")
    workers = bound(folder, workers=["ann", "bob"])
    pairs = [("a", "anonymous"), ("b", "ann"), ("c", "bob"), ("a", "imported person")]
    workers.remember(pairs)
    workers.remember(pairs)
    workers.submit([Question("a", None, id=7), Question("b", "bob", id=8), Question("c", "ann", id=9)])
    assert collect(workers) == {(7, "anonymous", "dog")}
    say(folder, "a,,cat", "a,,dog", "b,,cat", "c,bob,cat", "b,,dog", "c,anonymous,dog")
    assert collect(workers) == {(8, "bob", "dog"), (9, "ann", "dog")}


def test_rows_that_were_never_asked_wait_with_one_warning(folder, caplog):
    workers = bound(folder)
    workers.submit([Question("a", None, id=1)])
    say(folder, "b,ann,cat", "c,ann,dog")
    assert collect(workers) == set()
    assert collect(workers) == set()
    assert [record.message for record in caplog.records if "2 rows answer tasks that were never asked" in record.message]
    assert len(caplog.records) == 1
    workers.submit([Question("b", None, id=2)])
    assert collect(workers) == {(2, "ann", "cat")}


def test_bad_settings(tmp_path):
    for names in (["ann", "ann"], ["ann", "ann "], [" "], ["a\nb"], ["a" * 101]):
        with pytest.raises(AnnotError, match=r"give names that differ|is no name for a worker"):
            FileWorkers(workers=names)
    assert FileWorkers(workers=[" ann"]).names() == ["ann"]
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(AnnotError, match="no folder for questions"):
        bound(blocked)


def test_without_names_a_second_opinion_needs_a_second_person(tmp_path: Path) -> None:
    workers = FileWorkers()
    workers.bind(Task(["a", "b"], ["cat", "dog"], 0, str(tmp_path)))
    assert workers.capacity().tolist() == [1, 1]
    workers.remember([("a", "anna"), ("b", "anna")], ["anna"])
    assert workers.capacity().tolist() == [1, 1]
    workers.remember([("a", "ben")], ["ben"])
    assert workers.capacity().tolist() == [2, 2]
    workers.remember([("a", "from an old table"), ("a", "another")])
    assert workers.capacity().tolist() == [4, 2]  # what they said takes no place of anna's and ben's, who alone can be asked
    workers.submit([Question("b", None, id=1)])
    say(tmp_path, "b,eve,dog")
    assert collect(workers) == {(1, "eve", "dog")}
    assert workers.capacity().tolist() == [5, 3]
    named = FileWorkers(workers=["anna"])
    named.bind(Task(["a", "b"], ["cat", "dog"], 0, str(tmp_path)))
    assert named.capacity() is None


def test_who_came_with_imported_answers_or_as_an_expert_cannot_be_asked(tmp_path: Path) -> None:
    with AnnotationLog(tmp_path / "a.db") as log:
        given = {("a", "old", -1): "import", ("b", "old", -1): "import", ("b", "eve", -1): "expert", ("b", "star", 0): "expert"}
        given |= {("c", "anna", 0): "file"}
        log.record([(Question(i, w, round=r), Answer(0, w, "cat", source=s)) for (i, w, r), s in given.items()])
        workers = FileWorkers()
        Ledger(log, Task(["a", "b", "c"], ["cat", "dog"], 0, str(tmp_path)), workers)
    assert workers.capacity().tolist() == [2, 4, 1]
