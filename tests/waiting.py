"""Waiting for another thread or process: as long as it takes on a busy machine, and not beyond its end."""

from __future__ import annotations

import time
from collections.abc import Callable


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
