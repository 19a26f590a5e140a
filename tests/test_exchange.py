"""Every format of answers on a small fixture, and the table of formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from exchange_records import PLAIN, TEN_H, made, rows, saved

from lightning_annot.annotations.addresses import file_name
from lightning_annot.exchange import cifar, confusions, json_files, label_studio, tables
from lightning_annot.exchange.formats import FORMATS, find, listing
from lightning_annot.exchange.records import Reading
from lightning_annot.types import AnnotError


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    return partial(saved, tmp_path)


CROWD = [("1", "ann", "cat", 2.5, "annotation"), ("1", "ben", "dog", None, "annotation")]


@pytest.mark.parametrize("who", ["worker", "performer"])
def test_crowd_kit(write: Callable[..., Path], who: str) -> None:
    found = tables.read_crowd_kit(write(f"task,{who},label,seconds,more\n1,ann,cat,2.5,x\n1,ben,dog,,y\n"), PLAIN)
    assert rows(found) == CROWD
    assert found.class_names() == ("cat", "dog")


def test_columns_may_have_other_names_and_one_worker_may_be_named(write: Callable[..., Path]) -> None:
    how = Reading({"task": "file", "label": "class", "seconds": "took"}, worker="ann")
    found = tables.read_crowd_kit(write("file,class,took\na.jpg,cat,3\n"), how)
    assert rows(found) == [("a.jpg", "ann", "cat", 3.0, "annotation")]


def test_what_the_expert_filled_in_is_the_label(write: Callable[..., Path]) -> None:
    path = write("task,label,risk,expert_label\n1,cat,.5,dog\n2,cat,.4,\n3,cat,.3, Unsure\n")
    found = tables.read_crowd_kit(path, Reading(worker="eve"))
    assert rows(found) == [("1", "eve", "dog", None, "annotation"), ("3", "eve", None, None, "annotation")]
    with pytest.raises(AnnotError, match=r"does not say who.*--expert"):
        tables.read_crowd_kit(path, PLAIN)


def test_cleanlab(write: Callable[..., Path]) -> None:
    found = tables.read_cleanlab(write("task,annotator,label\n1,ann,cat\n"), PLAIN)
    assert rows(found) == [("1", "ann", "cat", None, "annotation")]


def test_cleanlab_wide(write: Callable[..., Path]) -> None:
    found = tables.read_cleanlab_wide(write(",ann,ben\n0,1.0,\n1,nan,0.0\n2,2.0,1.0\n"), PLAIN)
    assert [row[:3] for row in rows(found)] == [("0", "ann", "1"), ("1", "ben", "0"), ("2", "ann", "2"), ("2", "ben", "1")]


def test_cleanlab_wide_is_what_cleanlab_reads(tmp_path: Path) -> None:
    multiannotator = pytest.importorskip("cleanlab.multiannotator")
    labels = np.array([[0, 0, 1], [1, 1, 1], [0, 1, 0], [1, 1, 0], [0, 0, 0]]).astype(str)
    cells = [(f"t{i}", f"w{j}", labels[i, j], 1.0) for i in range(5) for j in range(3)]
    tables.write_cleanlab_wide(tmp_path / "wide.csv", made(cells))
    matrix = pd.read_csv(tmp_path / "wide.csv", index_col="task")
    assert multiannotator.get_majority_vote_label(matrix).tolist() == [0, 1, 0, 1, 0]


def test_mechanical_turk(write: Callable[..., Path]) -> None:
    header = "HITId,WorkerId,AssignmentStatus,WorkTimeInSeconds,Input.image_url,Answer.category.label,Approve,Reject\n"
    path = write(header + "H1,A1,Approved,12,u/1,cat,x,\nH1,A2,Rejected,1,u/1,dog,,spam\nH2,A1,Submitted,9,u/2,,,\n")
    assert rows(tables.read_mturk(path, PLAIN)) == [
        ("u/1", "A1", "cat", 12.0, "annotation"),
        ("u/2", "A1", None, 9.0, "annotation"),
    ]


def test_the_task_of_our_own_batch_comes_back(tmp_path: Path, write: Callable[..., Path]) -> None:
    tables.write_mturk_input(tmp_path / "in.csv", ["1.jpg"], ["http://x/1.jpg"])
    assert (tmp_path / "in.csv").read_text() == "image_url,task\nhttp://x/1.jpg,1.jpg\n"
    path = write("WorkerId,Input.image_url,Input.task,Answer.a\nA,http://x/1.jpg,1.jpg,cat\n")
    assert rows(tables.read_mturk(path, PLAIN))[0][:3] == ("1.jpg", "A", "cat")


def test_netease(write: Callable[..., Path]) -> None:
    header = "tasksetId,taskId,workerId,answer,completeTime,truth,capability\n"
    found = tables.read_netease(
        write(header + "5,10,a,1,1600000000000,0,3\n5,10,b,0,1600000000001,0,3\n5,11,a,2,1,,3\n"), PLAIN
    )
    assert [row[:4] for row in rows(found)] == [("10", "a", "1", None), ("10", "b", "0", None), ("11", "a", "2", None)]
    assert found.truth == {"10": "0"}


STUDIO = [
    {
        "id": 7,
        "data": {"image": "/data/1.jpg"},
        "annotations": [
            {
                "id": 1,
                "completed_by": 3,
                "lead_time": 4.5,
                "was_cancelled": False,
                "result": [
                    {"from_name": "box", "to_name": "image", "type": "rectangle", "value": {"x": 1}},
                    {"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": ["cat"]}},
                ],
            },
            {"id": 2, "completed_by": {"id": 4, "email": "b@x"}, "was_cancelled": True, "result": []},
            {
                "id": 3,
                "completed_by": {"id": 5},
                "ground_truth": True,
                "result": [{"from_name": "choice", "type": "choices", "value": {"choices": ["dog"]}}],
            },
        ],
    },
    {"id": 8, "data": {"image": "/data/2.jpg"}, "annotations": [], "predictions": []},
]


def test_label_studio(write: Callable[..., Path]) -> None:
    found = label_studio.read_label_studio(write(STUDIO, "a.json"), PLAIN)
    assert rows(found) == [
        ("/data/1.jpg", "3", "cat", 4.5, "annotation"),
        ("/data/1.jpg", "b@x", None, None, "annotation"),
        ("/data/1.jpg", "5", "dog", None, "gold"),
    ]
    assert found.truth == {"/data/1.jpg": "dog"}


def test_label_studio_writes_predictions_and_addresses(tmp_path: Path) -> None:
    guesses = pd.DataFrame({"task": ["1", "2"], "label": ["cat", "dog"], "confidence": [0.75, 0.5]})
    label_studio.write_label_studio(tmp_path / "a.json", made(CROWD[:1]), {"1": "http://x/1", "2": "http://x/2"}, guesses)
    first, second = json.loads((tmp_path / "a.json").read_text())
    assert [first["data"], second["data"]] == [{"image": f"http://x/{i}", "task": str(i)} for i in (1, 2)]
    assert first["annotations"][0]["completed_by"] == {"email": "ann"}
    assert second["annotations"] == []
    (prediction,) = second["predictions"]
    assert prediction["score"] == 0.5
    assert prediction["result"][0] == {
        "from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": ["dog"]},
    }  # fmt: skip


def test_label_studio_csv(write: Callable[..., Path]) -> None:
    header = "image,id,sentiment,annotator,annotation_id,created_at,updated_at,lead_time\n"
    path = write(header + "u/1,1,cat,3,1,t,t,4.5\nu/2,2,,3,2,t,t,\n")
    assert rows(label_studio.read_label_studio_csv(path, PLAIN)) == [
        ("u/1", "3", "cat", 4.5, "annotation"),
        ("u/2", "3", None, None, "annotation"),
    ]


@pytest.mark.parametrize("tensors", [True, False])
def test_cifar10n(tmp_path: Path, tensors: bool) -> None:
    kind = torch.from_numpy if tensors else np.asarray
    labels = {"clean_label": np.arange(20) % 10, "worse_label": np.zeros(20), "aggre_label": np.zeros(20)}
    labels |= {f"random_label{s}": (np.arange(20) + s) % 10 for s in (1, 2, 3)}
    torch.save({name: kind(array) for name, array in labels.items()}, tmp_path / "human.pt")
    names = [f"Worker{s}-id,Work-time-in-seconds-{s}" for s in (1, 2, 3)]
    side = f"Image-batch,{','.join(names)}\n0 -- 9,7,20,8,30,9,40\n10 -- 19,8,50,7,60,5,70\n"
    (tmp_path / "side_info_cifar10N.csv").write_text(side)
    found = cifar.read_cifar10n(tmp_path / "human.pt", PLAIN)
    table = rows(found)
    assert len(table) == 60
    assert table[0] == ("0", "7", "automobile", 2.0, "annotation")  # slot 1 of image 0 is Worker 1 of batch 0
    assert table[20 + 13] == ("13", "7", "dog", 6.0, "annotation")  # slot 2 of image 13
    assert found.truth["13"] == "cat"
    assert found.class_names() == cifar.CLASSES
    (tmp_path / "side_info_cifar10N.csv").write_text(side.replace("10 -- 19", "20 -- 29"))
    with pytest.raises(AnnotError, match=r"line 3: '20 -- 29'.*batch i holds"):
        cifar.read_cifar10n(tmp_path / "human.pt", PLAIN)
    (tmp_path / "side_info_cifar10N.csv").write_text(side[: side.index("10 --")])
    with pytest.raises(AnnotError, match="1 batches of 10 images for 20 labels"):
        cifar.read_cifar10n(tmp_path / "human.pt", PLAIN)


def test_a_hostile_or_foreign_pt_is_refused(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "touched",)

    torch.save({"clean_label": Hostile()}, tmp_path / "a.pt")
    with pytest.raises(AnnotError, match="cannot be read as a file of arrays"):
        cifar.read_cifar10n(tmp_path / "a.pt", PLAIN)
    assert not (tmp_path / "touched").exists()
    torch.save({"clean_label": torch.zeros(3)}, tmp_path / "b.pt")
    with pytest.raises(AnnotError, match="must be a dictionary with clean_label, random_label1"):
        cifar.read_cifar10n(tmp_path / "b.pt", PLAIN)


@pytest.mark.parametrize("index", cifar.INDEX)
def test_cifar10h(write: Callable[..., Path], index: str) -> None:
    path = write(
        TEN_H.format(index=index) + "3,0,0,cat,dog,17,1500,9\n3,1,1,ship,ship,-99999,900,9\n3,2,1,ship,cat,-99999,800,9\n"
    )
    found = cifar.read_cifar10h(path, PLAIN)
    assert rows(found) == [
        ("17", "3", "dog", 1.5, "annotation"),
        ("attention-ship-1", "3", "ship", 0.9, "gold"),
        ("attention-ship-2", "3", "cat", 0.8, "gold"),
    ]
    assert found.truth == {"17": "cat", "attention-ship-1": "ship", "attention-ship-2": "ship"}
    names, counts = confusions.count_confusions(found.answers, found.truth, found.class_names())
    assert names == ["3"]
    assert counts.sum() == 3
    assert counts[0, 8, 8] == 1


def test_peerannot(tmp_path: Path, write: Callable[..., Path]) -> None:
    path = write({"0": {"4": 1, "5": 0}, "1": {"4": 0}}, "answers.json")
    write({"name": "x", "n_classes": 2, "n_workers": 2}, "metadata.json")
    wanted = [("0", "4", "1"), ("0", "5", "0"), ("1", "4", "0")]
    assert [row[:3] for row in rows(json_files.read_peerannot(path, PLAIN))] == wanted
    assert [row[:3] for row in rows(json_files.read_peerannot(tmp_path, PLAIN))] == wanted


def test_lean(write: Callable[..., Path]) -> None:
    data = {
        "dataset": {}, "images": {"1": {}}, "workers": {"ann": {}},
        "annos": [{"image_id": "1", "worker_id": "ann", "anno": {"label": 3}}],
        "gt_labels": [{"image_id": "1", "label": {"label": 4}}],
    }  # fmt: skip
    found = json_files.read_lean(write(data, "a.json"), PLAIN)
    assert [row[:3] for row in rows(found)] == [("1", "ann", "3")]
    assert found.truth == {"1": "4"}


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("a/b/c.jpg", "c.jpg"),
        ("https://x/y/c%20d.jpg?sig=1", "c d.jpg"),
        ("/data/local-files/?d=pets/c.jpg", "c.jpg"),
        ("c#1.jpg", "c#1.jpg"),
    ],
)
def test_file_names_of_addresses(address: str, name: str) -> None:
    assert file_name(address) == name


def test_the_table_of_formats_is_whole() -> None:
    for name, form in FORMATS.items():
        for direction in ("read", "write"):
            if getattr(form, direction):
                assert callable(find(name, Path("x"), direction))
                assert f"  {name} " in listing(direction)
            else:
                with pytest.raises(AnnotError, match=f"--format {name} given"):
                    find(name, Path("x"), direction)
    assert find(None, Path("a.CSV"), "write") is find("crowd-kit", Path("x"), "write")
    with pytest.raises(AnnotError, match=r"may be of several formats.*label-studio"):
        find(None, Path("a.json"), "read")
