"""Images of the page: decoded once for all who ask, a bounded number of pixels at once, and none from outside the root."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cli_runs import ROOT
from encoded import GREY, png, with_segment
from PIL import Image

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.data.page_task import TASK_FILE, ImageSettings, PageTask
from lightning_annot.serve.pictures import LARGE, SMALL, Pictures
from lightning_annot.serve.room import Room
from lightning_annot.types import AnnotError, Question

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")

LARGEST = 700  # MB that the page may take for an image of 169 million grey pixels; four at once took 5,400
SCREENSHOT = "Screenshot at 9.41.00\u202fAM.png"


def begin(run: Path, photos: Path, **settings: bool) -> Path:
    run.mkdir()
    images = ImageSettings(str(photos), **settings)  # type: ignore[arg-type]
    (run / TASK_FILE).write_text(PageTask(("cat", "dog"), ("cat", "dog"), {"cat": (), "dog": ()}, images).to_json())
    return run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", SCREENSHOT):
        Image.new("RGB", (300, 200), "red").save(folder / name)
    return folder


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_huge_image_is_decoded_once_for_all_who_ask(tmp_path: Path, photos: Path) -> None:
    from lightning_annot.experiments.served import ServedPage

    row = bytes(13_000)
    (photos / "huge.png").write_bytes(png([row] * 13_000, (13_000, 13_000), 8, GREY))
    (photos / "bomb.png").write_bytes(png([b"\0"], (20_000, 20_000), 8, GREY))
    run = begin(tmp_path / "run", photos)
    with AnnotationLog(run / "annotations.db") as log:
        log.ask([Question(item, "ann") for item in ("huge.png", SCREENSHOT, "bomb.png")])
    with ServedPage(run, ["ann"]) as served, httpx.Client(timeout=300, headers={"cookie": served.cookies["ann"]}) as client:
        assert client.post(f"{served.address}/api/next", json={"n": 3}).json()["questions"] == [1, 2, 3]
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: client.get(f"{served.address}/image/1"), range(4)))
        assert [answer.status_code for answer in answers] == [200] * 4
        assert Image.open(io.BytesIO(answers[0].content)).size == (LARGE, LARGE)
        status = Path(f"/proc/{served._process.pid}/status").read_text()
        peak = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert peak is not None
        assert int(peak[1]) < LARGEST * 1000
        assert client.get(f"{served.address}/image/2").status_code == 200
        refused = client.get(f"{served.address}/image/3")
        assert (refused.status_code, refused.json()) == (404, {"error": "the image cannot be shown"})


SHOWS_FOUR = """
import re, sys
from pathlib import Path
from lightning_annot.serve.pictures import Pictures
pictures = Pictures(Path(sys.argv[1]))
pictures.task()
for coming in [pictures.encoded(f"{i}.png", edge) for edge in (1280, 160) for i in range(4)]:
    coming.result()
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_threads_keep_no_memory_of_large_images(tmp_path: Path, photos: Path) -> None:
    side = 6_500
    for i in range(4):
        Image.new("RGB", (side, side), (i, 0, 0)).save(photos / f"{i}.png", compress_level=1)
    words = [sys.executable, "-c", SHOWS_FOUR, str(begin(tmp_path / "run", photos))]
    done = subprocess.run(words, cwd=ROOT, text=True, capture_output=True, check=True)
    assert int(done.stdout) < 2.5 * 4 * side**2 / 1024  # one image of four bytes a pixel, and the program


def test_who_ask_for_the_same_image_share_it(tmp_path: Path, photos: Path) -> None:
    pictures = Pictures(begin(tmp_path / "run", photos))
    assert pictures.task() is not None
    with pictures._opening:  # nothing can be decoded meanwhile
        asked = [pictures.encoded("a.png", LARGE) for _ in range(8)]
        assert len({id(future) for future in asked}) == 1
        assert pictures.encoded("a.png", SMALL) is not asked[0]
    picture = asked[0].result(timeout=60)
    while (again := pictures.encoded("a.png", LARGE)) is asked[0]:
        time.sleep(0.01)
    assert again.result(timeout=60) is picture
    with pytest.raises(AnnotError, match="an item has no image"):
        pictures.encoded("absent.png", LARGE).result(timeout=60)
    pictures.close()


def test_an_image_that_cannot_be_read_is_tried_again(tmp_path: Path, photos: Path) -> None:
    (photos / "b.png").write_bytes(b"not yet")
    pictures = Pictures(begin(tmp_path / "run", photos))
    pictures.task()
    with pytest.raises(AnnotError, match="cannot be read"):
        pictures.encoded("b.png", LARGE).result(timeout=60)
    Image.new("RGB", (20, 20)).save(photos / "b.png")
    assert pictures.encoded("b.png", LARGE).result(timeout=60).media_type == "image/png"


def test_comments_and_transparency_of_a_file(tmp_path: Path, photos: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (300, 200)).save(buffer, "jpeg")
    (photos / "c.jpg").write_bytes(with_segment(buffer.getvalue(), 0xFE, b"where and who"))
    Image.new("RGBA", (300, 200)).save(photos / "d.png")
    pictures = Pictures(begin(tmp_path / "run", photos))
    pictures.task()
    assert b"where and who" not in pictures.encoded("c.jpg", LARGE).result(timeout=60).data
    clear = Image.open(io.BytesIO(pictures.encoded("d.png", SMALL).result(timeout=60).data))
    assert clear.size == (160, 107)
    assert clear.getpixel((50, 50)) == (255, 255, 255)


def test_no_image_from_outside_the_root(tmp_path: Path, photos: Path) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "secret.png")
    (photos / "link.png").symlink_to(tmp_path / "secret.png")
    pictures = Pictures(begin(tmp_path / "run", photos))
    pictures.task()
    with pytest.raises(AnnotError, match=r"1 images lie outside .*photos \(link.png\).*data\.allow_outside"):
        pictures.open()
    allowed = Pictures(begin(tmp_path / "other", photos, allow_outside=True))
    allowed.task()
    assert allowed.encoded("link.png", LARGE).result(timeout=60).media_type == "image/png"


def test_an_older_task_is_read(tmp_path: Path, photos: Path) -> None:
    run = begin(tmp_path / "run", photos)
    text = (run / TASK_FILE).read_text()
    (run / TASK_FILE).write_text(re.sub(r',\s*"allow_outside": false', "", text))
    assert (run / TASK_FILE).read_text() != text
    assert PageTask.read(run / TASK_FILE).images == ImageSettings(str(photos))


def test_room_is_shared_in_order() -> None:
    room, lock = Room(10), threading.Lock()
    held, most, order = 0, 0, []

    def take(number: int, wanted: int) -> None:
        nonlocal held, most
        with room.of(wanted):
            with lock:
                held += min(wanted, 10)
                most = max(most, held)
                order.append(number)
            time.sleep(0.005)
            with lock:
                held -= min(wanted, 10)

    wishes = [3, 4, 99, 1, 1, 10, 5, 6]
    threads = []
    with room.of(10):
        for number, wanted in enumerate(wishes):
            threads.append(threading.Thread(target=take, args=(number, wanted)))
            threads[-1].start()
            while len(room._queue) <= number:
                time.sleep(0.001)
    for thread in threads:
        thread.join(60)
    assert most <= 10
    assert sorted(order) == list(range(8))
    assert order.index(2) == 2  # the large one was not passed by
    assert held == 0


def test_room_is_given_back_after_an_error() -> None:
    room = Room(1)
    with pytest.raises(ValueError, match="x"), room.of(1):
        raise ValueError("x")
    with room.of(1):
        pass
