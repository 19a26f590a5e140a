from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from lightning_annot.annotations.formats import import_answers, read_answers, read_labels, write_answers, write_table
from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.types import AnnotError, Answer, Question

DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "cifar10n"
real = pytest.mark.skipif(not (DATA / "annotations.csv").exists(), reason=f"no real answers at {DATA}")


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str, name: str = "answers.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode())
        return path

    return write


def test_answers_are_text_in_the_order_of_the_file(write):
    path = write("\ufefftask,worker,label,seconds,slot,note\r\n007,w1,NA,2.5,2,x\r\n\r\n8,w1,null,,1,y\r\n")
    table = read_answers(path, classes=["NA", "null"], items=["007", "8"])
    assert list(table) == ["task", "worker", "label", "seconds", "slot"]
    assert table["task"].tolist() == ["007", "8"]
    assert table["label"].tolist() == ["NA", "null"]
    assert table["slot"].tolist() == [2, 1]
    assert table["seconds"].isna().tolist() == [False, True]


def test_the_old_name_of_a_worker(write):
    path = write("performer,task,label\nann,1,cat\n")
    assert read_answers(path).to_dict("records") == [{"task": "1", "worker": "ann", "label": "cat"}]
    both = write("performer,worker,task,label\nann,bob,1,cat\n")
    with pytest.raises(AnnotError, match="more than one column"):
        read_answers(both)


def test_a_file_without_rows_is_an_empty_table(write):
    table = read_answers(write("task,worker,label,seconds,slot\n"), classes=["cat"], items=["1"])
    assert table.empty
    assert list(table) == ["task", "worker", "label", "seconds", "slot"]
    assert read_labels(write("task,label\n"), ["cat"]).empty


HEADER = "task,worker,label,seconds,slot\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"without \['task', 'worker', 'label'\]"),
        ("task|worker|label\n1|a|cat\n", r"columns \['task\|worker\|label'\]"),
        ("task,label\n1,cat\n", r"without \['worker'\]"),
        ("task,task,worker,label\n1,1,a,cat\n", r"more than one column \['task'\]"),
        (HEADER + "1,a,cat,1,1\n2,a;cat\n3,a", r"2 rows do not have the 5 cells .*line 3: '2,a;cat', line 4: '3,a'"),
        (HEADER + "1,a,cat,1,1,1\n", "line 2"),
        (HEADER + '1,a,"cat,1,1\n', "line 2: unexpected end of data"),
        (HEADER + ",a,cat,1,1\n", "line 2: ''.*fill them"),
        (HEADER + "1, ,cat,1,1\n", "have no worker"),
        (HEADER + "1,a,,1,1\n", "have no label"),
        (HEADER + "1,a,cow,1,1\n", "label outside the classes .*line 2: 'cow'.* the 2 classes are 'cat', 'dog'"),
        (HEADER + "1,a,cat,1,1\n9,a,cat,1,1\n", "task outside the items .*line 3: '9'.* the 2 items are '1', '2'"),
        (HEADER + "1,a,cat,1,1\n1,a,dog,1,2\n", "same worker answered in another way above .*line 3: '1'"),
        (HEADER + '"1\n2",a,cat,1,1\n', r"line end or another control character in the task .*line 3: '1\\n2'"),
        (HEADER + "1,a\x00,cat,1,1\n", r"control character in the worker .*line 2|line 2: line contains NUL"),
        (HEADER + f"1,{'a' * 101},cat,1,1\n", "worker that is no name for one .*line 2"),
        (HEADER + "1,a,cat,-1,1\n", "impossible seconds"),
        (HEADER + "1,a,cat,inf,1\n", "impossible seconds"),
        (HEADER + "1,a,cat,soon,1\n", "impossible seconds .*'soon'"),
        (HEADER + "1,a,cat,1,first\n", "slot that is no whole number"),
        (HEADER + "1,a,cat,1,\n", "slot that is no whole number"),
    ],
)
def test_bad_answers_are_named_by_line(write, text, message):
    with pytest.raises(AnnotError, match=message):
        read_answers(write(text), classes=["cat", "dog"], items=["1", "2"])


def test_unreadable_files(tmp_path):
    with pytest.raises(AnnotError, match="cannot be read"):
        read_answers(tmp_path / "absent.csv")
    russian = tmp_path / "russian.csv"
    russian.write_bytes("task,label\n1,кошка\n2,собака\n".encode("koi8_r"))
    with pytest.raises(AnnotError, match="line 2 is neither UTF-8 nor cp1252"):
        read_labels(russian)


def test_labels(write):
    table = read_labels(write("label,task\nNA,1\ncat,2\n"), classes=["NA", "cat"])
    assert table.to_dict("list") == {"task": ["1", "2"], "label": ["NA", "cat"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task\n1\n", r"without \['label'\]"),
        ("task,label\n1,cat\n1,dog\n", "another label above .*line 3: '1'"),
        ("task,label\n1,cow\n", "outside the classes"),
        ("task,label\n1,\n", "have no label"),
    ],
)
def test_bad_labels(write, text, message):
    with pytest.raises(AnnotError, match=message):
        read_labels(write(text), classes=["cat", "dog"])


def test_many_bad_rows_are_counted_and_the_first_shown(write):
    path = write("task,label\n" + "".join(f"{i},cow\n" for i in range(100)))
    with pytest.raises(AnnotError, match=r"100 rows .*line 6: 'cow', \.\.\.\)"):
        read_labels(path, classes=["cat"])


def test_a_written_table_reads_back(tmp_path):
    frame = pd.DataFrame({"task": ["a,b", 'say "x"', "c;d"], "label": ["NA", "null", "Bär"]})
    write_table(tmp_path / "labels.csv", frame)
    pd.testing.assert_frame_equal(read_labels(tmp_path / "labels.csv"), frame.astype(object))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "labels.csv"
    write_table(path, pd.DataFrame({"task": ["old"]}))

    def full(_: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(AnnotError, match="No space left"):
        write_table(path, pd.DataFrame({"task": ["new"]}))
    assert path.read_text() == "task\nold\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["labels.csv"]


def test_export_is_what_crowd_kit_reads_and_import_takes_back(tmp_path):
    with AnnotationLog(tmp_path / "a.db") as log:
        log.ask([Question("1", None), Question("2", None), Question("3", None), Question("4", "ann", "gold")])
        log.answer([Answer(1, "ann", "NA", 1.5), Answer(2, "bob", "cat"), Answer(3, "bob", None), Answer(4, "ann", "cat")])
        write_answers(log, tmp_path / "export.csv")
        assert import_answers(log, tmp_path / "export.csv") == 0
    assert (tmp_path / "export.csv").read_text() == "task,worker,label,seconds\n1,ann,NA,1.5\n2,bob,cat,\n"
    with AnnotationLog(tmp_path / "b.db") as log:
        assert import_answers(log, tmp_path / "export.csv", classes=["NA", "cat"]) == 2
        assert import_answers(log, tmp_path / "export.csv") == 0
        answers = log.answers(before_round=0)
        assert answers["source"].tolist() == ["import", "import"]
        assert answers["round"].tolist() == [-1, -1]
        assert log.questions(open_only=True).empty
        write_answers(log, tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "export.csv").read_text()


def test_majority_vote_of_crowd_kit_takes_the_export(tmp_path):
    aggregation = pytest.importorskip("crowdkit.aggregation")
    with AnnotationLog(tmp_path / "a.db") as log:
        log.ask([Question("1", None)] * 3)
        log.answer([Answer(1, "ann", "cat"), Answer(2, "bob", "cat"), Answer(3, "eve", "dog")])
        write_answers(log, tmp_path / "export.csv")
    votes = aggregation.MajorityVote().fit_predict(pd.read_csv(tmp_path / "export.csv", dtype=str))
    assert votes.to_dict() == {"1": "cat"}


@real
def test_the_real_answers_are_read_and_imported(tmp_path):
    labels = read_labels(DATA / "true_labels.csv")
    classes = sorted(set(labels["label"]))
    answers = read_answers(DATA / "annotations.csv", classes, labels["task"].tolist())
    assert (len(answers), answers["worker"].nunique()) == (30_000, 220)
    with AnnotationLog(tmp_path / "a.db") as log:
        assert import_answers(log, DATA / "annotations.csv", classes) == 30_000
        stored = log.answers()
    assert stored["label"].tolist() == answers["label"].tolist()
    assert stored["seconds"].tolist() == answers["seconds"].tolist()
