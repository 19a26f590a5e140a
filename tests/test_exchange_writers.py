"""Answers out in the forms of others: small files made by hand, read and written again, and what has no place in a form."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from exchange_records import PLAIN, ROUND, made, rows
from hypothesis import given
from hypothesis import strategies as st

from lightning_annot.exchange import cifar, cifar_out, confusions, folders, label_studio, numbers, tables
from lightning_annot.exchange.records import Records
from lightning_annot.names import clean, is_allowed
from lightning_annot.types import AnnotError

MTURK = """HITId,HITTypeId,AssignmentId,WorkerId,AssignmentStatus,AcceptTime,SubmitTime,WorkTimeInSeconds,\
Input.image_url,Input.task,Answer.label,Approve,Reject
1,,1,A1,Submitted,,,12,https://x/1.jpg,1.jpg,cat,,
1,,2,A2,Submitted,,,2.5,https://x/1.jpg,1.jpg,"dog, wet",,
2,,3,A1,Submitted,,,,https://x/2.jpg,2.jpg,,,
"""
STUDIO = """image,id,choice,annotator,annotation_id,created_at,updated_at,lead_time
u/1,1,cat,3,1,,,4.5
u/1,1,dog,4,2,,,
u/2,2,,3,3,,,7
"""
NETEASE = """tasksetId,taskId,workerId,answer,completeTime,truth,capability
0,10,7,1,,0,0
0,10,8,0,,0,0
0,11,7,2,,,0
"""
TEN_H = f"""annotator_id,trial_index,is_attn_check,true_category,chosen_category,true_label,chosen_label,correct_guess,\
{cifar.INDEX[0]},reaction_time,time_elapsed
3,0,0,cat,dog,3,5,0,17,1500,
3,1,1,ship,ship,8,8,1,-99999,900,
5,0,0,,truck,,9,,18,,
5,1,1,bird,bird,2,2,1,4,1100.5,
"""


@pytest.mark.parametrize(
    ("text", "read", "write"),
    [
        (MTURK, tables.read_mturk, lambda path, given: tables.write_mturk(path, given, "https://x/{}".format)),
        (STUDIO, label_studio.read_label_studio_csv, label_studio.write_label_studio_csv),
        (NETEASE, tables.read_netease, tables.write_netease),
        (TEN_H, cifar.read_cifar10h, cifar_out.write_cifar10h),
        ("task,worker,label,seconds\n1,ann,=cmd(),2.5\n01,-ben,cat,\n", tables.read_crowd_kit, tables.write_crowd_kit),
        ('task,annotator,label\n1,"a ""b""",cat\n', tables.read_cleanlab, tables.write_cleanlab),
        ("task,ann,ben\n1,cat,\n02,dog,cat\n", tables.read_cleanlab_wide, tables.write_cleanlab_wide),
    ],
)
def test_a_file_is_written_as_it_was_read(tmp_path: Path, text: str, read: Any, write: Any) -> None:
    path = tmp_path / "in.csv"
    path.write_text(text)
    write(tmp_path / "out.csv", read(path, PLAIN))
    assert (tmp_path / "out.csv").read_text() == text
    assert not numbers.names_file(tmp_path / "out.csv").exists()


def study(path: Path) -> None:
    """A small file like that of the paper."""
    counts = {"0": [[[2, 1], [0, 3]]], "1": [[[1, 0], [1, 1]], [[0, 0], [0, 1]]]}
    data = {"imagenet100": ["n1", "n2"], "imagenet100_name": ["ant", "bee"], "group_workers": counts}
    path.write_text(json.dumps(data | {"total_cm": [[3, 1], [1, 5]]}))


def test_the_people_of_a_study_come_back_as_they_were_called(tmp_path: Path) -> None:
    study(tmp_path / "a.json")
    found = confusions.read_group_workers(tmp_path / "a.json", PLAIN)
    who, counts = confusions.count_confusions(found.answers, found.truth, found.class_names())
    assert who == ["0-0", "1-0", "1-1"]
    confusions.write_group_workers(
        tmp_path / "b.json", found.class_names(), ["ant", "bee"], {"0": counts}, {"0": ["é", "b", "c"]}
    )
    again = confusions.read_group_workers(tmp_path / "b.json", PLAIN)
    names, same = confusions.count_confusions(again.answers, again.truth, again.class_names())
    assert names == ["b", "c", "é"]
    np.testing.assert_array_equal(same, counts[[1, 2, 0]])
    assert json.loads((tmp_path / "b.json").read_text())["total_cm"] == [[3, 1], [1, 5]]
    data = json.loads((tmp_path / "b.json").read_text())
    (tmp_path / "b.json").write_text(json.dumps(data | {"workers": {"0": ["only one"]}}))
    with pytest.raises(AnnotError, match="other numbers of people in workers"):
        confusions.read_group_workers(tmp_path / "b.json", PLAIN)


def cifar10n(n: int = 23) -> Records:
    """Answers of three workers a batch of ten, of whom one is another in each batch; the last batch is short."""
    rng, cells = np.random.default_rng(0), []
    for slot in range(3):
        for row in range(n):
            worker = f"w{row // 10}" if slot == 1 else str(slot)
            cells.append((str(row), worker, cifar.CLASSES[rng.integers(10)], 2.0 + slot))
    return made(cells, {str(row): cifar.CLASSES[rng.integers(10)] for row in range(0, n, 2)})


def test_cifar10n_there_and_back(tmp_path: Path) -> None:
    given_ = cifar10n()
    assert cifar_out.write_cifar10n(tmp_path / "a.pt", given_) == 0
    found = cifar.read_cifar10n(tmp_path / "a.pt", PLAIN)
    assert rows(found) == rows(given_)
    assert found.truth == given_.truth
    side = (tmp_path / cifar.SIDE).read_text()
    assert side.splitlines()[3] == "20 -- 22,0,6,w2,9,2,12"
    (tmp_path / "again").mkdir()
    cifar_out.write_cifar10n(tmp_path / "again" / "a.pt", found)
    assert (tmp_path / "again" / cifar.SIDE).read_text() == side
    ours, theirs = (torch.load(tmp_path / name, weights_only=True) for name in ("a.pt", "again/a.pt"))
    assert ours.keys() == theirs.keys() == {
        "clean_label", "worse_label", "aggre_label", "random_label1", "random_label2", "random_label3",
    }  # fmt: skip
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    said = [[ours[f"random_label{s}"][i].item() for s in (1, 2, 3)] for i in range(23)]
    for i, three in enumerate(said):
        clean, worse = ours["clean_label"][i].item(), ours["worse_label"][i].item()
        assert ours["aggre_label"][i].item() == max(three, key=lambda c: (three.count(c), -three.index(c)))
        if i % 2:
            assert clean == worse == -1
        else:
            assert worse == next((c for c in three if c != clean), clean)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda f: f.drop(index=3), "needs 3 labels of each image from 0 to 22, and there are 68"),
        (lambda f: f.assign(worker=f["worker"].where(f.index != 33, "zoe")), "1 of 3 batches of 10 images, such as 10 to 19"),
        (lambda f: f.assign(task=f["task"].where(f["task"] != "7", "07")), "'07'.*no row numbers"),
        (lambda f: f.assign(task=f["task"].where(f["task"] != "7", "7" * 17)), "from 0 to 77777777777777777"),
        (lambda f: f.assign(label="cow"), "'cow'.*no classes of CIFAR-10"),
        (lambda f: f[:0], "no labels yet"),
    ],
)
def test_what_does_not_fit_into_cifar10n_is_refused(tmp_path: Path, change: Any, why: str) -> None:
    with pytest.raises(AnnotError, match=why):
        cifar_out.write_cifar10n(tmp_path / "a.pt", Records(change(cifar10n().answers)))
    assert not list(tmp_path.iterdir())


def test_labels_beside_three_workers_a_batch_are_counted(tmp_path: Path) -> None:
    given_ = cifar10n()
    more = made([*rows(given_), ("3", "zoe", "cat", None), *((str(i), "yan", "dog", 1.0) for i in range(10))], given_.truth)
    assert cifar_out.write_cifar10n(tmp_path / "a.pt", more) == 11
    assert rows(cifar.read_cifar10n(tmp_path / "a.pt", PLAIN)) == rows(given_)


def test_files_that_cannot_be_written_say_so(tmp_path: Path) -> None:
    for write, given_ in ((cifar_out.write_cifar10n, cifar10n()), (tables.write_netease, cifar10n())):
        with pytest.raises(AnnotError, match="absent"):
            write(tmp_path / "absent" / "a", given_)


NAME = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6).filter(lambda s: is_allowed(s) and clean(s) == s)
NAMES = NAME | st.sampled_from(["007", "7", "=cmd()", "+1", "@x", "a,b", 'say "no"', "a;b", "a b", "ü", "nan"])
CLASS = NAMES.filter(lambda s: s.strip() == s and not s.startswith("{") and s.lower() != "nan")
SECONDS = st.none() | st.integers(0, 9000).map(lambda n: n / 10)


def cells_of(task: st.SearchStrategy[str], worker: st.SearchStrategy[str], label: st.SearchStrategy[str]) -> Any:
    pairs = st.dictionaries(st.tuples(task, worker), st.tuples(label, SECONDS), min_size=1, max_size=12)
    return pairs.map(lambda given: [(*key, *value) for key, value in given.items()])


@pytest.mark.parametrize(
    ("write", "read", "timed"),
    [
        (tables.write_crowd_kit, tables.read_crowd_kit, True),
        (tables.write_cleanlab, tables.read_cleanlab, False),
        (tables.write_mturk, tables.read_mturk, True),
        (label_studio.write_label_studio_csv, label_studio.read_label_studio_csv, True),
        (label_studio.write_label_studio, label_studio.read_label_studio, True),
        (tables.write_netease, tables.read_netease, False),
    ],
)
@ROUND
@given(cells=cells_of(NAMES, NAMES, CLASS))
def test_any_name_comes_back(tmp_path: Path, write: Any, read: Any, timed: bool, cells: list[Any]) -> None:
    write(tmp_path / "a.csv", made(cells))
    assert set(rows(read(tmp_path / "a.csv", PLAIN))) == {(*c[:3], c[3] if timed else None, "annotation") for c in cells}


@ROUND
@given(cells=cells_of(NAMES, NAMES.filter(lambda s: s.strip() == s), CLASS))
def test_any_name_comes_back_from_a_matrix(tmp_path: Path, cells: list[Any]) -> None:
    tables.write_cleanlab_wide(tmp_path / "a.csv", made(cells))
    assert {row[:3] for row in rows(tables.read_cleanlab_wide(tmp_path / "a.csv", PLAIN))} == {c[:3] for c in cells}


@ROUND
@given(cells=cells_of(st.integers(0, 9999).map(str), NAMES, st.sampled_from(cifar.CLASSES)), data=st.data())
def test_any_worker_comes_back_from_cifar10h(tmp_path: Path, cells: list[Any], data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.sampled_from(["annotation", "gold"]), min_size=len(cells), max_size=len(cells)))
    given_ = made([(*cell, kind) for cell, kind in zip(cells, kinds, strict=True)], {cells[0][0]: "cat"})
    cifar_out.write_cifar10h(tmp_path / "a.csv", given_)
    found = cifar.read_cifar10h(tmp_path / "a.csv", PLAIN)
    assert found.truth == given_.truth
    assert [(*row[:2], row[2], row[4]) for row in rows(found)] == [(*row[:2], row[2], row[4]) for row in rows(given_)]
    np.testing.assert_allclose(found.answers["seconds"], given_.answers["seconds"])


def test_numbers_have_names_beside_them_and_never_old_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    tables.write_netease(path, made([("x.jpg", "7", "cat", None), ("y.jpg", "8", "ant", None)], {"y.jpg": "ant"}))
    table = pd.read_csv(path)
    assert table[["taskId", "workerId", "answer"]].to_numpy().tolist() == [[0, 7, 1], [1, 8, 0]]
    assert (tmp_path / "a.names.csv").read_text().splitlines()[:2] == ["column,number,name", "taskId,0,x.jpg"]
    found = tables.read_netease(path, PLAIN)
    assert found.truth == {"y.jpg": "ant"}
    path.write_text(path.read_text().replace("0,0,7,", "0,9,7,"))
    with pytest.raises(AnnotError, match=r"taskId without a name in a\.names\.csv beside it .*line 2: '9'"):
        tables.read_netease(path, PLAIN)
    tables.write_netease(path, made([("1", "7", "0", None)]))
    assert not (tmp_path / "a.names.csv").exists()
    assert rows(tables.read_netease(path, PLAIN))[0][:3] == ("1", "7", "0")


def test_the_moment_of_an_answer_goes_out(tmp_path: Path) -> None:
    given_ = made([("1", "7", "0", 2.0)])
    given_.answers["answered_at"] = "2020-01-01T00:00:01.500000+00:00"
    tables.write_netease(tmp_path / "a.csv", given_)
    assert pd.read_csv(tmp_path / "a.csv")["completeTime"].tolist() == [1577836801500]
    tables.write_mturk(tmp_path / "b.csv", given_)
    assert pd.read_csv(tmp_path / "b.csv")["SubmitTime"].tolist() == ["2020-01-01T00:00:01.500000+00:00"]
    label_studio.write_label_studio_csv(tmp_path / "c.csv", given_)
    assert pd.read_csv(tmp_path / "c.csv")["created_at"].tolist() == ["2020-01-01T00:00:01.500000+00:00"]


@pytest.mark.parametrize(
    ("write", "cell", "why"),
    [
        (tables.write_mturk, ("1", "a", " cat", None), "without the spaces around them"),
        (tables.write_cleanlab_wide, ("1", "a ", "cat", None), "without the spaces around them"),
        (label_studio.write_label_studio_csv, ("1", "a", '{"choices":', None), "more than one choice"),
        (cifar_out.write_cifar10h, ("1", "a", "cow", None), "no classes of CIFAR-10"),
        (cifar_out.write_cifar10h, ("a.jpg", "a", "cat", None), "no row numbers"),
    ],
)
def test_what_a_form_would_change_is_refused(tmp_path: Path, write: Callable[..., Any], cell: Any, why: str) -> None:
    with pytest.raises(AnnotError, match=why):
        write(tmp_path / "a.csv", made([cell]))
    assert not list(tmp_path.iterdir())


def test_crowd_kit_aggregates_what_we_write(tmp_path: Path) -> None:
    aggregation = pytest.importorskip("crowdkit.aggregation")
    tables.write_crowd_kit(tmp_path / "a.csv", made([("1", w, c, None) for w, c in zip("abc", ("x", "y", "y"), strict=True)]))
    labels = aggregation.MajorityVote().fit_predict(pd.read_csv(tmp_path / "a.csv", dtype=str))
    assert labels.to_dict() == {"1": "y"}


def test_cleanlab_takes_the_long_form_as_a_matrix(tmp_path: Path) -> None:
    multiannotator = pytest.importorskip("cleanlab.multiannotator")
    cells = [(str(t), w, str((t + len(w)) % 2), None) for t in range(6) for w in ("a", "b", "cc")]
    tables.write_cleanlab(tmp_path / "a.csv", made(cells))
    long = pd.read_csv(tmp_path / "a.csv")
    matrix = multiannotator.convert_long_to_wide_dataset(long)
    assert multiannotator.get_majority_vote_label(matrix.to_numpy(float)).tolist() == [1, 0, 1, 0, 1, 0]


def test_metadata_as_csv(tmp_path: Path) -> None:
    labels = pd.DataFrame({"task": ["a.jpg", "b, c.jpg"], "label": ["007", "=x"], "confidence": [0.5, 1.0]})
    folders.write_metadata(tmp_path / "metadata.csv", labels)
    assert (tmp_path / "metadata.csv").read_text().splitlines()[0] == "file_name,label,confidence"
    found = rows(folders.read_metadata(tmp_path, PLAIN))
    assert [row[0::2][:2] for row in found] == [("a.jpg", "007"), ("b, c.jpg", "=x")]
