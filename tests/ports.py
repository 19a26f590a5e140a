"""Ports for servers that take a port by its number, or come back at the one they had."""

from __future__ import annotations

import secrets
import socket

FIRST, LAST = 10_000, 32_000  # below those that a system gives out by itself, to who listens at port 0 or connects


def free_port() -> int:
    """A port at which nobody listens, and which nobody gets by chance before, or between, it is listened at."""
    while True:
        port = FIRST + secrets.randbelow(LAST - FIRST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
