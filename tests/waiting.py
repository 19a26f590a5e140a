"""Other threads and processes: what goes on meanwhile, and waiting for it as long as it takes on a busy machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def meanwhile(*works: Callable[[threading.Event], None]) -> Iterator[None]:
    """Each of ``works`` in a thread of its own, until the event that it is given is set; raises what any of them raised."""
    stop = threading.Event()
    with ThreadPoolExecutor(len(works)) as pool:
        ended = [pool.submit(work, stop) for work in works]
        try:
            yield
        finally:
            stop.set()
    for work in ended:
        work.result()


def wait_for(done: Callable[[], object], alive: Callable[[], bool] = lambda: True, seconds: float = 600.0) -> None:
    """Until ``done()`` is true; fails after ``seconds``, or once what it depends on is no longer ``alive()``."""
    end = time.monotonic() + seconds
    while True:
        living, late = alive(), time.monotonic() > end  # asked before: it may be done, and then end
        if done():
            return
        assert living, "what was waited for did not come: the process has ended"
        assert not late, f"what was waited for did not come in {seconds:g} seconds"
        time.sleep(0.02)
