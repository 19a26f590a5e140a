"""What is refused of files in other formats: malformed ones, each with its line, and what a format cannot say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from exchange_records import PLAIN, TEN_H, Read, made, saved

from lightning_annot.exchange import cifar, confusions, folders, json_files, label_studio, tables
from lightning_annot.types import AnnotError

HEADER = "task,worker,label\n"


@pytest.mark.parametrize(
    ("read", "content", "words"),
    [
        (tables.read_crowd_kit, "task,label\n1,cat\n", r"without \['worker'\]"),
        (tables.read_crowd_kit, HEADER + "1,a,cat\n1,a,dog\n", "same worker answered in another way above .*line 3: '1'"),
        (tables.read_crowd_kit, HEADER + "1,a,cat\n2,a,\n", "have no label .*line 3"),
        (tables.read_crowd_kit, HEADER + "1,a,cat\n2,a", r"do not have the 3 cells .*line 3: '2,a'"),
        (tables.read_cleanlab, HEADER + "1,a,cat\n", r"without \['annotator'\]"),
        (tables.read_cleanlab_wide, "task,a,a\n1,2,3\n", "each other one its own worker"),
        (tables.read_cleanlab_wide, "task,a\n,2\n", "have no task .*line 2"),
        (tables.read_cleanlab_wide, "task,a\n1,2\n1,3\n", "line 3: '1'"),
        (tables.read_mturk, "WorkerId,Input.a,Input.b,Answer.c\nw,1,2,3\n", "--map task=COLUMN"),
        (tables.read_mturk, "WorkerId,Input.a\nw,1\n", "--map label=COLUMN"),
        (tables.read_mturk, "WorkerId,Input.a,Answer.b,WorkTimeInSeconds\nw,1,2,-3\n", "impossible seconds .*line 2"),
        (tables.read_netease, "taskId,workerId,answer,truth\n1,a,0,0\n1,b,0,1\n", "contradicts .*line 3: '1'"),
        (label_studio.read_label_studio_csv, "image,id,x,y,annotator\nu,1,a,b,3\n", r"\['x', 'y'\].*--map label="),
        (label_studio.read_label_studio_csv, 'image,x,annotator\nu,"{""choices"":[]}",3\n', "line 2.*more than one choice"),
        (
            cifar.read_cifar10h,
            TEN_H.format(index=cifar.INDEX[0]) + "3,0,0,cat,cow,17,1,9\n",
            "outside the classes .*line 2: 'cow'",
        ),
        (cifar.read_cifar10h, TEN_H.format(index=cifar.INDEX[0]) + "3,0,0,cat,dog,-1,1,9\n", "line 2: '-1'.*-99999"),
        (label_studio.read_label_studio, [{"image": "1", "id": 1, "choice": "cat", "annotation_id": 1}], "JSON-MIN"),
        (label_studio.read_label_studio, "{", "line 1: .*the file may be cut"),
        (label_studio.read_label_studio, {}, "dict where a list of tasks"),
        (label_studio.read_label_studio, [3], "tasks 1: '3' is no JSON object"),
        (label_studio.read_label_studio, [{"id": 1}], "task 1 has no 'data'"),
        (label_studio.read_label_studio, [{"data": {"text": "x"}}], "task 1, data has no 'image'"),
        (label_studio.read_label_studio, [{"data": []}], "must be a JSON object"),
        (
            label_studio.read_label_studio,
            [{"data": {"image": "u"}, "annotations": [{"result": []}]}],
            "task 1, annotation 1.*--worker",
        ),
        (
            label_studio.read_label_studio,
            [{"data": {"image": "u"}, "annotations": [{"completed_by": 1, "lead_time": -1, "result": []}]}],
            "impossible seconds .*task 1, annotation 1: '-1'",
        ),
        (
            label_studio.read_label_studio,
            [{"data": {"image": "u"}, "annotations": [{"completed_by": 1, "result": [{"type": "choices", "value": 3}]}]}],
            r"value\.choices must be a list",
        ),
        (
            label_studio.read_label_studio,
            [
                {
                    "data": {"image": "u"},
                    "annotations": [{"completed_by": 1, "result": [{"type": "choices", "value": {"choices": ["a", "b"]}}]}],
                }
            ],
            "2 choices",
        ),
        (json_files.read_peerannot, [1], r"'\[1\]' where \{task"),
        (json_files.read_peerannot, {"1": 3}, "of task '1'"),
        (json_files.read_lean, {"images": {}}, "the file has no 'annos'"),
        (json_files.read_lean, {"annos": [{"image_id": 1, "anno": {"label": 1}}]}, "anno 1 has no 'worker_id'"),
        (json_files.read_lean, {"annos": [{"image_id": 1, "worker_id": 2, "anno": {}}]}, "anno 1, anno has no 'label'"),
        (confusions.read_group_workers, [], "no JSON object"),
        (confusions.read_group_workers, {"imagenet100": ["a", "b"], "group_workers": {"0": [[[1]]]}}, r"shape \(1, 1, 1\)"),
        (confusions.read_group_workers, {"imagenet100": ["a"], "group_workers": {"0": [[[0.5]]]}}, "whole numbers"),
        (confusions.read_group_workers, {"imagenet100": ["a"], "group_workers": {"0": "x"}}, "group '0'"),
        (folders.read_metadata, "not json\n", "line 1: "),
        (folders.read_metadata, '{"file_name": "a"}\n', "line 1 has no 'label'"),
        (folders.read_metadata, "3\n", "line 1: '3' is no JSON object"),
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, read: Read, content: Any, words: str) -> None:
    with pytest.raises(AnnotError, match=words):
        read(saved(tmp_path, content, "answers"), PLAIN)
    with pytest.raises(AnnotError):
        read(tmp_path / "absent.json", PLAIN)


def test_what_a_format_cannot_say_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AnnotError, match="read as no answer"):
        tables.write_cleanlab_wide(tmp_path / "a.csv", made([("1", "a", "nan", None)]))
    assert not list(tmp_path.iterdir())
