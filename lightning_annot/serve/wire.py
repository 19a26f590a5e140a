"""The socket under the page: who may hold a connection, and for how long a request may take to come in."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

LONGEST_HEAD = 16_384  # bytes of a request before its body


class Wire(H11Protocol):
    """uvicorn's protocol, which by itself waits for ever for a request that does not end.

    A request must be there whole ``PATIENCE`` seconds after its first byte, or after the connection was made; who does not
    read what is sent is let go after ``STALLED`` seconds. There are at most ``MOST`` connections: one more closes the one whose
    time is up first.
    """

    PATIENCE = 10.0
    STALLED = 30.0
    MOST = 500

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect a request, and make room."""
        super().connection_made(transport)
        self._deadline: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._since = self.loop.time()
        self._expect()
        if len(self.connections) > self.MOST:
            self._close_one()

    def data_received(self, data: bytes) -> None:
        """Part of a request: its first byte starts the clock, its last one stops it."""
        super().data_received(data)
        state, (rest, _) = self.conn.their_state, self.conn.trailing_data
        if state is h11.SEND_BODY or (state is h11.IDLE and rest):
            self._expect()
        else:
            self._forget()

    def pause_writing(self) -> None:
        """The other side does not read: another clock."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self.STALLED, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        self._go_on()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        self._forget()
        self._go_on()
        super().connection_lost(exc)

    def _go_on(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _expect(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.PATIENCE, self.transport.abort)

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _close_one(self) -> None:
        """Who has no clock is being served, and goes only if there is nobody else: first who came first. Browsers connect anew,
        and lose nothing.
        """
        others = [wire for wire in self.connections if isinstance(wire, Wire) and wire is not self]
        clocks = [(wire._deadline or wire.timeout_keep_alive_task or wire._stalled, wire) for wire in others]
        waiting = [(clock.when(), wire) for clock, wire in clocks if clock is not None]
        chosen = min(waiting or [(wire._since, wire) for wire in others], key=lambda pair: pair[0])[1]
        chosen.transport.abort()
