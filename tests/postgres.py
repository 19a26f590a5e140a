"""A PostgreSQL server of the tests' own, where one is installed: a folder and a free port, gone afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ports import free_port

OWNER = "nobody"  # the server refuses to run as root
START_SECONDS = 120  # most that it may take to come up; less than 1 where nothing else runs
_AS_ROOT = os.geteuid() == 0


def why_not() -> str | None:
    """What is missing here to run a server."""
    if lacking := [name for name in ("initdb", "postgres") if shutil.which(name) is None]:
        return f"no PostgreSQL here: {', '.join(lacking)} not found"
    if _AS_ROOT and shutil.which("setpriv") is None:
        return "PostgreSQL does not run as root, and there is no setpriv to run it as somebody else"
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "no psycopg here; pip install 'lightning-annot[postgres]'"
    return None


@contextmanager
def running_postgres() -> Iterator[str]:
    """A server on this machine alone; the URL of its first database, to which the user ``annot`` needs no password."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="annot_pg_", dir="/tmp") as folder:
        if _AS_ROOT:
            shutil.chown(folder, OWNER)
        data = Path(folder) / "data"
        _run("initdb", "--pgdata", str(data), "--username", "annot", "--auth", "trust", "--encoding", "UTF8", "--no-sync")
        options = {
            "listen_addresses": "127.0.0.1",
            "port": (port := free_port()),
            "unix_socket_directories": folder,
            "shared_buffers": "16MB",
            "fsync": "off",  # the clients are killed in tests, never the machine
        }
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        server = subprocess.Popen([*_drop(), "postgres", "-D", str(data), *words], stderr=subprocess.DEVNULL, cwd=folder)
        try:
            url = f"postgresql://annot@127.0.0.1:{port}/postgres"
            _wait(url, server)
            yield url
        finally:
            server.send_signal(signal.SIGQUIT)  # at once, whoever is connected still
            server.wait()


def new_database(server_url: str) -> str:
    """An empty database on the server; its URL."""
    import psycopg

    name = f"log_{uuid.uuid4().hex}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return f"{server_url.rpartition('/')[0]}/{name}"


def _drop() -> list[str]:
    if not _AS_ROOT:
        return []
    return ["setpriv", f"--reuid={OWNER}", f"--regid={pwd.getpwnam(OWNER).pw_gid}", "--clear-groups", "--"]


def _run(*command: str) -> None:
    done = subprocess.run([*_drop(), *command], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr


def _wait(url: str, server: subprocess.Popen[bytes]) -> None:
    import psycopg

    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        try:
            psycopg.connect(url).close()
            return
        except psycopg.OperationalError:
            assert server.poll() is None, "the server ended at once"
            time.sleep(0.05)
    raise AssertionError("the server did not come up")
