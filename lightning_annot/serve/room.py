"""A bound on what is in memory at once."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Room:
    """Lets threads hold at most ``most`` of something together, in the order in which they ask.

    A thread that wants more than there is gets all of it, alone, so nobody waits for ever.
    """

    def __init__(self, most: int) -> None:
        self._most = self._free = most
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()

    @contextmanager
    def of(self, wanted: int) -> Iterator[None]:
        """Wait for one's turn and for enough to be free, and hold it during the block."""
        wanted, turn = min(wanted, self._most), object()
        with self._changed:
            self._queue.append(turn)
            self._changed.wait_for(lambda: self._queue[0] is turn and self._free >= wanted)
            self._queue.popleft()
            self._free -= wanted
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += wanted
                self._changed.notify_all()
