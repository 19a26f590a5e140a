"""Names, encodings, separators and repeats in files that people wrote."""

from __future__ import annotations

import tracemalloc
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from exchange_records import PLAIN, Read, made, rows, saved

from lightning_annot.annotations.addresses import find_items
from lightning_annot.annotations.formats import import_answers, read_answers, read_labels, read_sheet, write_table
from lightning_annot.annotations.json_text import read_json
from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.annotations.sheets import split_sheet
from lightning_annot.callbacks.run_folder import load_cost, load_prices
from lightning_annot.certificate.audit import read_audit
from lightning_annot.data.classes import read_classes
from lightning_annot.data.loading import BackboneSettings, Loaded, list_items
from lightning_annot.data.manifest import manifest_source
from lightning_annot.data.owner import Owner, TaskClasses
from lightning_annot.data.run_labels import read_run_labels
from lightning_annot.exchange import confusions, folders, incoming, json_files, label_studio, tables
from lightning_annot.ledger import Ledger
from lightning_annot.round.settings import CrowdSettings
from lightning_annot.types import AnnotError, Answer, Question, Task
from lightning_annot.workers.files import FileWorkers
from lightning_annot.workers.live import LiveWorkers

HEADER = "task,worker,label,seconds\n"
ACCENTS = HEADER + "1,jörg,Bär,3.5\n2,anna,Löwe,\n"


def studio(address: str, who: Any = "ann ", label: str = " cat", **more: Any) -> dict[str, Any]:
    result = [{"from_name": "choice", "type": "choices", "value": {"choices": [label]}}]
    return {"data": {"image": address}, "annotations": [{"completed_by": who, "result": result}], **more}


@pytest.mark.parametrize(
    ("read", "name", "content"),
    [
        (tables.read_crowd_kit, "a.csv", "task,worker,label\n 1,ann ,\u00a0cat\u200b\n1 , ann,cat\n"),
        (tables.read_cleanlab, "a.csv", "task,annotator,label\n 1,ann ,cat \n"),
        (tables.read_cleanlab_wide, "a.csv", "task, ann \n1 , cat\n"),
        (tables.read_mturk, "a.csv", "WorkerId,Input.a,Answer.b\n ann,1 ,cat \n"),
        (tables.read_netease, "a.csv", "taskId,workerId,answer\n1 ,ann ,cat \n"),
        (label_studio.read_label_studio, "a.json", [studio(" 1"), studio("1")]),
        (label_studio.read_label_studio_csv, "a.csv", "image,annotator,choice\n1 ,ann , cat\n"),
        (json_files.read_peerannot, "answers.json", {" 1": {"ann ": "cat "}, "1": {"ann": "cat"}}),
        (json_files.read_lean, "a.json", {"annos": [{"image_id": "1 ", "worker_id": " ann", "anno": {"label": "cat "}}] * 2}),
    ],
)
def test_every_format_reads_names_without_the_spaces_around_them(tmp_path: Path, read: Read, name: str, content: Any) -> None:
    assert [row[:3] for row in rows(read(saved(tmp_path, content, name), PLAIN))] == [("1", "ann", "cat")]


def test_every_other_reader_does_too(tmp_path: Path) -> None:
    write = partial(saved, tmp_path)
    assert read_labels(write("task,label\n 1,cat \n1,cat\n")).to_dict("list") == {"task": ["1"], "label": ["cat"]}
    assert read_classes([" cat", "dog "]).ids == ("cat", "dog")
    assert read_classes(str(write("class,name\n cat,Cat \n"))).names == ("Cat",)
    assert load_prices(str(write("worker,price\n ann,1\nann,1\n"))) == {"ann": 1.0}
    assert incoming.read_words(write("from,to\n Katze,cat \n")) == {"Katze": "cat"}
    assert read_run_labels(write("task,label\n 1,cat\n2,dog \n")).ids == ("1", "2")
    assert CrowdSettings(experts=("eve ",)).experts == ("eve",)
    assert LiveWorkers(workers=["ann "]).names() == ["ann"]
    (tmp_path / "1.png").write_bytes(b"")
    source = manifest_source(write("task,path,label\n 1,1.png,cat \n"))
    assert (source.ids, source.labels) == (("1",), {"1": "cat"})
    source = manifest_source(write('{"id": " 1", "path": "1.png", "label": "cat "}', "a.jsonl"))
    assert (source.ids, source.labels) == (("1",), {"1": "cat"})
    found = folders.read_metadata(write('{"file_name": " 1", "label": "cat "}', "metadata.jsonl"), PLAIN)
    assert rows(found)[0][:3] == ("1", "folder", "cat")


def test_classes_are_found_whatever_their_case_and_items_in_both_forms_of_unicode(tmp_path: Path) -> None:
    composed, other = "né.jpg", unicodedata.normalize("NFD", "né.jpg")
    path = saved(tmp_path, f"task,worker,label\n{other},ann,Bird\n", "a.csv")
    found = read_answers(path, ["bird", "cat"], [composed])
    assert found.to_numpy().tolist() == [[composed, "ann", "bird"]]
    assert read_labels(saved(tmp_path, "task,label\n1,BIRD\n"), ["bird"])["label"].tolist() == ["bird"]
    with pytest.raises(AnnotError, match="outside the classes"):
        read_labels(saved(tmp_path, "task,label\n1,BIRD\n"), ["bird", "Bird"])
    given = incoming.fitted(path, tables.read_crowd_kit(path, PLAIN), pd.Series([composed]), ["bird"])
    assert rows(given)[0][:3] == (composed, "ann", "bird")
    with AnnotationLog(tmp_path / "a.db") as log:
        log.ask([Question(composed, "expert", "audit")])
        audit = saved(tmp_path, f"task,label\n{other},Bird\n{other},bird \n")
        assert read_audit(log, audit, ["bird", "cat"]) == {composed: "bird"}
    workers = FileWorkers(str(tmp_path))
    workers.bind(Task([composed], ["bird", "cat"], 0, str(tmp_path)))
    workers.submit([Question(composed, None, id=1)])
    saved(tmp_path, f"task,worker,label\n{other},ann,Bird\n{composed},ann ,bird\n", "answers.csv")
    assert [(a.worker, a.label) for a in workers.collect()] == [("ann", "bird")]


def test_labels_and_prototypes_find_the_classes_of_the_task(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prototypes = saved(tmp_path, "task,label\n1,cAt\n2,dog\n")
    owner = Owner(["cat", "dog"], None, str(prototypes), 1, 2, "items", 0)
    loaded = Loaded(("1", "2", "3"), None, None, {"1": "CAT", "2": "dog", "3": "Dog"})  # type: ignore[arg-type]
    classes = owner.task_classes()
    loaded = loaded.with_classes(classes.ids)
    assert loaded.labels == {"1": "cat", "2": "dog", "3": "dog"}
    assert owner.table(loaded, classes, True).prototype.tolist() == [0, 1, -1]
    assert owner.table(loaded, TaskClasses(), True).classes == ("cat", "dog")
    assert not caplog.records
    bare = replace(owner, prototypes=None, prototypes_per_class=0)
    bare.table(replace(loaded, labels={"1": "cat", "2": "dog", "3": "Dog"}), TaskClasses(), True)
    assert caplog.records[0].getMessage() == "classes 'Dog' and 'dog' differ only by case and count as two"


def test_workers_who_differ_by_case_are_two_and_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with AnnotationLog(tmp_path / "a.db") as log:
        log.record([(Question("1", "Anna"), Answer(0, "Anna", "cat")), (Question("1", "anna"), Answer(0, "anna", "cat"))])
        Ledger(log, Task(["1"], ["cat", "dog"], 0, str(tmp_path)), FileWorkers(str(tmp_path)))
    line = "workers 'Anna' and 'anna' differ only by case and count as two"
    assert [record.getMessage() for record in caplog.records] == [line]
    caplog.clear()
    incoming.into_file(made([("1", "Anna", "cat", None), ("1", "anna", "cat", None)]), tmp_path)
    assert [record.getMessage() for record in caplog.records] == [line]


def test_an_old_log_with_spaces_around_names_has_one_worker(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with AnnotationLog(tmp_path / "a.db") as log:
        log.ask([Question("1", "anna "), Question("1", "anna"), Question("2", "anna "), Question("3", "anna ")])
        log.answer([Answer(1, "anna ", "cat"), Answer(2, "anna", "dog"), Answer(3, "anna ", "dog")])
        ledger = Ledger(log, Task(["1", "2", "3"], ["cat", "dog"], 0, str(tmp_path)), FileWorkers(str(tmp_path)))
        facts = ledger.facts(1)
        assert ledger.workers == ("anna",)
        assert facts.item.tolist() == [0, 0, 1]  # all are paid
        assert facts.label.tolist() == [0, -1, 1]  # the first answer about item 1 counts
        assert "1 answers contradict earlier ones of the same workers, the first counts" in caplog.text
        assert log.record([(Question("2", "anna"), Answer(0, "anna", "dog"))]) == 0
        saved(tmp_path, "task,worker,label\n3,anna,cat\n", "answers.csv")
        assert ledger.collect() == 1
        assert Ledger(log, Task(["1", "2", "3"], ["cat", "dog"], 0, str(tmp_path)), FileWorkers()).workers == ("anna",)


# Encodings and separators


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_tables_are_read_in_any_encoding_and_with_any_separator(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, encoding: str, separator: str
) -> None:
    text = ACCENTS.replace(",", separator)
    text = text if separator == "," else text.replace("3.5", "3,5")
    (tmp_path / "a.csv").write_bytes(text.encode(encoding))
    found = read_answers(tmp_path / "a.csv")
    assert found["worker"].tolist() == ["jörg", "anna"]
    assert found["label"].tolist() == ["Bär", "Löwe"]
    assert found["seconds"].tolist()[0] == 3.5
    told = [record.getMessage() for record in caplog.records]
    plain = encoding.startswith("utf-8")
    assert len(told) == int(not plain or separator != ",")
    words = [] if plain else [f"read as {encoding}"]
    words += {",": [], ";": ["columns separated by ';'"], "\t": ["columns separated by tabs"]}[separator]
    assert not told or told[0] == f"{tmp_path / 'a.csv'}: {', '.join(words)}"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_and_the_hint_of_excel(tmp_path: Path, end: str) -> None:
    text = f"sep=;{end}task;worker;label{end}1;a,b;cat{end}2;c;{end}"
    (tmp_path / "a.csv").write_bytes(text.encode())
    sheet = read_sheet(tmp_path / "a.csv")
    assert (sheet.header, sheet.lines) == (["task", "worker", "label"], [3, 4])
    with pytest.raises(AnnotError, match=r"have no label .line 4"):
        read_answers(tmp_path / "a.csv")
    mixed = b"task,label\r\n1,cat\r2,dog\n"
    (tmp_path / "b.csv").write_bytes(mixed)
    assert read_labels(tmp_path / "b.csv")["task"].tolist() == ["1", "2"]


@pytest.mark.parametrize(
    "text",
    [
        "task,worker,label,seconds,,\n1,ann,cat,,,\n2,bob,dog,2,,\n,,,,,\n,,,,,\n",  # cells that were used once
        "task;worker;label;seconds\r\n1;ann;cat\r\n2;bob;dog;2;;;\r\n;;;\r\n",  # Excel leaves out empty cells at the end
        "\n,,\n Task,Worker,Label ,SECONDS\n1,ann,cat,\n   \n2,bob,dog,2\n\n",
        'task, worker, label, seconds\n1, "ann", "cat",\n2, bob, "dog", "2"\n',
        '"sep=;"\r\ntask;worker;label;seconds\r\n1;ann;cat;\r\n2;bob;dog;2\r\n',
        "sep=;,,,\ntask,worker,label,seconds\n1,ann,cat,\n2,bob,dog,2\n",  # the hint, saved as a cell by another spreadsheet
    ],
)
def test_tables_are_read_as_spreadsheets_write_them(tmp_path: Path, text: str) -> None:
    found = read_answers(saved(tmp_path, text, "a.csv"))
    assert found[["task", "worker", "label"]].values.tolist() == [["1", "ann", "cat"], ["2", "bob", "dog"]]
    assert found["seconds"].tolist()[1] == 2


def test_a_row_of_the_same_file_with_another_separator_is_refused(tmp_path: Path) -> None:
    workers = FileWorkers()
    workers.bind(Task(["1", "2"], ["cat"], 0, str(tmp_path)))
    for row in ("2;ann;cat\n", "2,ann"):  # the second one is cut
        saved(tmp_path, f"task,worker,label\n1,ann,cat\n{row}", "answers.csv")
        with pytest.raises(AnnotError, match="line 3"):
            workers.collect()


@pytest.mark.parametrize(
    ("text", "header", "separator"),
    [
        ("task\na;b\n", ["task"], ","),
        ("task;worker;seconds, s\n1;a;3,5\n", ["task", "worker", "seconds, s"], ";"),
        ("task,a;b\n1,cat\n", ["task", "a;b"], ","),
        ('"task","a;b;c"\n1;x,cat\n', ["task", "a;b;c"], ","),
        ("task\tnote, if any\n1\tx\n", ["task", "note, if any"], "\t"),
    ],
)
def test_the_separator_is_the_one_that_the_rows_bear_out(tmp_path: Path, text: str, header: list[str], separator: str) -> None:
    sheet = split_sheet(saved(tmp_path, text))
    assert (sheet.header, sheet.separator, sheet.broken) == (header, separator, {})


def test_a_written_table_is_never_taken_for_one_with_semicolons(tmp_path: Path) -> None:
    write_table(tmp_path / "a.csv", pd.DataFrame({"task": [";;;"], ";;;": ["x"]}))
    assert split_sheet(tmp_path / "a.csv").rows == [[";;;", "x"]]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("task,label\n1,кошка\n2,собака\n".encode("koi8_r"), "line 2 is neither UTF-8 nor cp1252"),
        (
            "task,worker,label\n1,Łukasz,żaba\n2,Żaneta,ćma\n".encode("cp1250"),
            "line 2 is neither UTF-8 nor cp1252 .perhaps cp1250",
        ),
        ("task,label\n1,Bär\n2,Löwe\n3,Füchse\n".encode().replace("ü".encode(), b"\xc3"), "line 4 is damaged UTF-8"),
        ("task,label\n1,Bär\n".encode() + "2,Löwe\n".encode("cp1252"), "line 3 is damaged UTF-8, or in another encoding"),
        ("task,worker\n1,Анна\n".encode("cp1251"), "line 2 is not UTF-8, and 'Àííà' in cp1252"),
        ("task,worker\n1,ann\n2,André\n".encode("mac_roman"), "line 3 is not UTF-8, and 'AndrŽ' in cp1252"),
        ("task,label\n1,Bär\n".encode("utf-16")[:-1], "cut or damaged utf-16"),
    ],
)
def test_an_encoding_that_is_not_clear_is_refused_with_the_line(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(AnnotError, match=words):
        read_labels(tmp_path / "a.csv")


def test_cost_items_and_json_in_other_encodings(tmp_path: Path) -> None:
    assert load_cost(str(saved(tmp_path, "0;1,5\n2;0\n")), 2).tolist() == [[0.0, 1.5], [2.0, 0.0]]
    with pytest.raises(AnnotError, match="it is empty"):
        load_cost(str(saved(tmp_path, "\n")), 2)
    with pytest.raises(AnnotError, match="line 2 has another number of cells"):
        load_cost(str(saved(tmp_path, "0,1\n2\n")), 2)
    (tmp_path / "i.csv").write_bytes("task;note\n é;x\n".encode("utf-16"))
    np.save(tmp_path / "f.npy", np.ones((1, 2), np.float32))
    found = list_items(None, str(tmp_path / "f.npy"), None, str(tmp_path / "i.csv"), None, BackboneSettings())
    assert found.ids == ("é",)
    for encoding in ("utf-8-sig", "utf-16", "utf-32-le"):
        (tmp_path / "a.json").write_bytes('{"é": 1}'.encode(encoding))
        assert read_json(tmp_path / "a.json") == {"é": 1}


# Label Studio


@pytest.mark.parametrize(
    ("address", "item"),
    [
        ("/data/upload/3/ab12cd34-006.jpg", "pets/006.jpg"),
        ("/data/upload/3/ab12cd34-my_photo_1.jpg", "my photo (1).jpg"),
        ("/data/upload/3/ab12cd34-c%20d.jpg", "c d.jpg"),
        ("/data/local-files/?d=root/pets/006.jpg", "pets/006.jpg"),
        ("s3://bucket/all/pets/006.jpg", "pets/006.jpg"),
        ("gs://bucket/c%20d.jpg", "c d.jpg"),
        ("https://host/x/c%20d.jpg?token=1", "c d.jpg"),
        ("006.jpg", "pets/006.jpg"),
        ("s3://bucket/cats/006.jpg", None),  # another folder
        ("20240131-006.jpg", None),  # a date, and no upload
        ("x/20240131-006.jpg", None),
        ("/data/upload/3/ab12cd34-twice.jpg", None),  # a/twice.jpg or b/twice.jpg
        ("http://[x", None),
        ("", None),
    ],
)
def test_addresses_find_their_item_where_it_is_unique(address: str, item: str | None) -> None:
    items = ["pets/006.jpg", "my photo (1).jpg", "c d.jpg", "a/twice.jpg", "b/twice.jpg"]
    assert find_items([address], items) == ({} if item is None else {address: item})
    if item is not None:
        assert find_items([address, item], items) == {}
        assert find_items([address, f"http://other/{item}"], items) == {}


def test_an_index_holds_nothing_that_is_not_asked_for() -> None:
    items = [f"n{i % 100}/{i}.jpg" for i in range(20_000)]
    tracemalloc.start()
    found = find_items(["http://host/n7/107.jpg", "/data/upload/3/ab12cd34-9.jpg", "nowhere.jpg"], items)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == {"http://host/n7/107.jpg": "n7/107.jpg", "/data/upload/3/ab12cd34-9.jpg": "n9/9.jpg"}
    assert peak < 4_000_000  # a set of the items alone takes half of it


def test_uploads_to_label_studio_come_in_without_being_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    items = [f"pets/{i:03}.jpg" for i in range(20)]
    exported = [studio(f"/data/upload/3/{i:08x}-{i:03}.jpg") for i in range(20)]
    path = saved(tmp_path, exported, "a.json")
    found = incoming.fitted(path, label_studio.read_label_studio(path, PLAIN), pd.Series(items), ["cat", "dog"])
    assert found.answers["task"].tolist() == items
    assert "20 tasks found by file name" in caplog.text
    table = found.answers[["worker", "label"]].assign(task=[task["data"]["image"] for task in exported])
    with AnnotationLog(tmp_path / "a.db") as log:
        assert import_answers(log, saved(tmp_path, table.to_csv(index=False)), ["cat", "dog"], items) == 20
        assert sorted(log.answers()["item"]) == items


def test_completions_of_label_studio_before_1_are_read(tmp_path: Path) -> None:
    old = studio("u/1", who=3, honeypot=True)
    old["completions"] = old.pop("annotations")
    old["completions"][0] |= {"honeypot": True, "lead_time": 2.0}
    old["completions"].append({"completed_by": 4, "skipped": True, "result": []})
    found = label_studio.read_label_studio(saved(tmp_path, [old], "a.json"), PLAIN)
    assert rows(found) == [("u/1", "3", "cat", 2.0, "gold"), ("u/1", "4", None, None, "annotation")]


@pytest.mark.parametrize(
    ("read", "name", "content", "words"),
    [
        (
            label_studio.read_label_studio,
            "a.json",
            [{"data": {"image": "1"}}] * 12,
            "0 of 12 tasks have annotations; export after",
        ),
        (label_studio.read_label_studio, "a.json", [], "0 of 0 tasks"),
        (label_studio.read_label_studio_csv, "a.csv", "image,annotator,choice\n", "no answer found in .*a.csv"),
        (tables.read_crowd_kit, "a.csv", HEADER, "no answer found"),
        (tables.read_cleanlab, "a.csv", "task,annotator,label\n", "no answer found"),
        (tables.read_cleanlab_wide, "a.csv", "task,ann\n1,\n", "no answer found"),
        (tables.read_mturk, "a.csv", "WorkerId,Input.a,Answer.b,Reject\na,1,cat,no\n", "no answer found"),
        (tables.read_netease, "a.csv", "taskId,workerId,answer\n", "no answer found"),
        (json_files.read_peerannot, "answers.json", {"1": {}}, "no answer found"),
        (json_files.read_lean, "a.json", {"annos": []}, "no answer found"),
        (confusions.read_group_workers, "a.json", {"imagenet100": ["a"], "group_workers": {"0": [[[0]]]}}, "no answer found"),
        (folders.read_metadata, "metadata.jsonl", "\n", "no answer found"),
    ],
)
def test_a_file_without_an_answer_is_an_error(tmp_path: Path, read: Read, name: str, content: Any, words: str) -> None:
    with pytest.raises(AnnotError, match=words):
        read(saved(tmp_path, content, name), PLAIN)


def test_answers_that_a_run_begins_with_must_be_there(tmp_path: Path) -> None:
    with AnnotationLog(tmp_path / "a.db") as log, pytest.raises(AnnotError, match="no answer found"):
        import_answers(log, saved(tmp_path, HEADER))
    with pytest.raises(AnnotError, match="no label found"):
        incoming.into_file(made([("1", "a", None, None)]), tmp_path)


# Repeats and contradictions

CONTRADICTED = r"1 rows answer a task that the same worker answered in another way above \({}.*keep one answer of each worker"


def both_ways(write: Callable[[list[tuple[str, str, str]]], Any], read: Callable[[], Any], where: str) -> None:
    write([("1", "ann", "cat"), ("1", "ann", "cat"), ("2", "ann", "dog")])
    assert len(read()) == 2
    write([("1", "ann", "cat"), ("1", "ann", "dog")])
    with pytest.raises(AnnotError, match=CONTRADICTED.format(where)):
        read()


def test_a_repeat_counts_once_and_a_contradiction_is_named_alike(tmp_path: Path) -> None:
    def csv(given: list[tuple[str, str, str]]) -> None:
        pd.DataFrame(given, columns=["task", "worker", "label"]).to_csv(tmp_path / "answers.csv", index=False)

    def of_studio(given: list[tuple[str, str, str]]) -> None:
        saved(tmp_path, [studio(*row) for row in given], "a.json")

    def of_lean(given: list[tuple[str, str, str]]) -> None:
        annos = [{"image_id": t, "worker_id": w, "anno": {"label": c}} for t, w, c in given]
        saved(tmp_path, {"annos": annos}, "a.json")

    def collected() -> list[Answer]:
        workers = FileWorkers(str(tmp_path))
        workers.bind(Task(["1", "2"], ["cat", "dog"], 0, str(tmp_path)))
        workers.submit([Question(item, None, id=row) for row, item in enumerate(["1", "2", "1"], start=1)])
        return workers.collect()

    path = tmp_path / "answers.csv"
    both_ways(csv, lambda: read_answers(path), "line 3")
    both_ways(csv, lambda: tables.read_crowd_kit(path, PLAIN).answers, "line 3")
    both_ways(csv, collected, "line 3")
    both_ways(of_studio, lambda: label_studio.read_label_studio(tmp_path / "a.json", PLAIN).answers, "task 2, annotation 1")
    both_ways(of_lean, lambda: json_files.read_lean(tmp_path / "a.json", PLAIN).answers, "anno 2")

    def renamed() -> Any:
        given = made([("x/1", "ann", "cat", None), ("y/1", "ann", label, None), ("2", "ann", "dog", None)])
        return incoming.rename(path, given, task=lambda name: name[-1]).answers

    label = "cat"
    assert len(renamed()) == 2
    label = "dog"
    with pytest.raises(AnnotError, match=CONTRADICTED.format("line 1")):
        renamed()


def test_against_what_was_known_before_the_first_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = made([("1", "ann", "dog", None), ("2", "ann", "cat", None)])
    incoming.into_file(made([("1", "ann", "cat", None)]), tmp_path)
    assert incoming.into_file(given, tmp_path)[1] == 1
    labels = pd.DataFrame({"task": ["1", "2"], "status": "finished"})
    with AnnotationLog(tmp_path / "a.db") as log:
        log.record([(Question("1", "ann"), Answer(0, "ann", "cat"))])
        assert incoming.into_log(tmp_path, log, given, labels, ["cat", "dog"], "import") == 1
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["1 answers contradict earlier ones, the first counts (('1', 'ann'): 'cat' stays, 'dog' is dropped)"] * 2


@pytest.mark.parametrize("name", ["a" * 101, "a\nb", "a\u2028b"])
def test_names_that_the_page_refuses_import_refuses_too(tmp_path: Path, name: str) -> None:
    path = tmp_path / "answers.csv"
    write_table(path, pd.DataFrame({"task": ["1"], "worker": [name], "label": ["cat"]}))
    workers = FileWorkers(str(tmp_path))
    workers.bind(Task(["1"], ["cat", "dog"], 0, str(tmp_path)))
    for read in (lambda: read_answers(path), lambda: tables.read_crowd_kit(path, PLAIN), workers.collect):
        with pytest.raises(AnnotError, match=r"line [23]"):
            read()
    with pytest.raises(AnnotError, match="no name for a worker"):
        LiveWorkers(workers=[name])
