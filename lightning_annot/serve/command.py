"""``lightning-annot serve DIR``: the page for people, in a process of its own."""

from __future__ import annotations

import argparse
import gc
import ipaddress
import logging
import secrets
import socket
import sys
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from lightning_annot.commandline.options import OptionParser
from lightning_annot.types import AnnotError

_OF_A_RUN = {"annotations.db", "task.json", "config.yaml", "answers_import.csv", "adapted", "checkpoints", "logs"}
_DESCRIPTION = (
    "Show the labelling page of the run in DIR. The run and the page may be started, stopped and started again in any order. "
    "Needs pip install 'lightning-annot[serve]'."
)
_UNNAMED_PROXY = (
    "--base is https, and no proxy is named: all people seem to come from the proxy's address, and cookies are not marked as "
    "secure. Where a proxy passes X-Forwarded-For and X-Forwarded-Proto on, name it, as in --behind-proxy 127.0.0.1"
)


def serve_parser() -> argparse.ArgumentParser:
    """Parses what follows the word ``serve``."""
    parser = OptionParser("lightning-annot serve", description=_DESCRIPTION)
    parser.add_argument("dir", type=Path, help="folder of a run with LiveWorkers, or one that has asked an expert")
    parser.add_argument("--invite", nargs="+", default=[], metavar="NAME", help="make a personal link for each who has none")
    parser.add_argument("--renew", nargs="+", default=[], metavar="NAME", help="make a new link; the old one is closed")
    parser.add_argument("--hit", type=int, default=10, help="images of one HIT (10)")
    parser.add_argument("--lease-minutes", type=float, default=10.0, help="how long a question is lent to a worker (10)")
    parser.add_argument(
        "--give-back-hours", type=float, help="questions to a named worker go to others after so long (default: never)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0: all of this machine (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8765, help="0: any that is free (8765)")
    parser.add_argument("--base", help="how people reach the page, such as https://label.example.org (http://HOST:PORT)")
    parser.add_argument(
        "--behind-proxy", nargs="+", default=[], type=_network, metavar="ADDRESS",
        help="addresses or networks of the proxies whose X-Forwarded-For and X-Forwarded-Proto are believed (default: none)",
    )  # fmt: skip
    parser.add_argument("--url", help="SQLAlchemy URL of the log without a password, if it is not DIR/annotations.db")
    return parser


def serve(args: list[str]) -> int:
    """Run the page until Ctrl-C."""
    given = serve_parser().parse_args(args)
    gc.disable()  # a tenth of the time to start goes into looking for garbage among what is there to stay
    try:
        with _listen(given.host, given.port) as listening:  # first: who comes too soon waits
            return _serve(given, listening)
    finally:
        gc.enable()


def _serve(given: argparse.Namespace, listening: socket.socket) -> int:
    try:
        import uvicorn

        from lightning_annot.annotations.desk import Desk, Lending
        from lightning_annot.annotations.log import AnnotationLog
        from lightning_annot.data.page_task import TASK_FILE, PageTask
        from lightning_annot.serve.app import PageSettings, make_app
        from lightning_annot.serve.guard import Hosts
        from lightning_annot.serve.wire import LONGEST_HEAD, Wire
    except ImportError as error:
        raise AnnotError(f"the page needs more packages ({error}); pip install 'lightning-annot[serve]'") from error
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    lending = Lending(60 * given.lease_minutes, None if given.give_back_hours is None else 3600 * given.give_back_hours)
    base = (given.base or f"http://{given.host}:{listening.getsockname()[1]}").rstrip("/")
    if urlsplit(base).scheme not in ("http", "https") or not urlsplit(base).hostname:
        raise AnnotError(f"--base {given.base} given; it must be a whole address, such as https://label.example.org.")
    settings = PageSettings(given.hit, lending, hosts=Hosts.of(given.host, base))
    if lending.give_back is not None and (given.dir / TASK_FILE).is_file() and PageTask.read(given.dir / TASK_FILE).study:
        raise AnnotError("--give-back-hours given for a study, in which nobody can answer for another; leave it out.")
    _make_folder(given.dir)
    with AnnotationLog(given.url or given.dir / "annotations.db") as log:
        owner = secrets.token_urlsafe(16)
        print(f"owner: {base}/o/{owner}", flush=True)
        _invite(Desk(log, lending), given.invite, given.renew, base)
        if base.startswith("https:") and not given.behind_proxy:
            print(_UNNAMED_PROXY, file=sys.stderr, flush=True)
        app = make_app(given.dir, log, owner, settings)
        config = uvicorn.Config(
            app, http=Wire, ws="none", h11_max_incomplete_event_size=LONGEST_HEAD, timeout_keep_alive=75, server_header=False,
            log_level="error", access_log=False,  # addresses of links are secrets
            proxy_headers=bool(given.behind_proxy), forwarded_allow_ips=given.behind_proxy,  # else anyone may claim any address
        )  # fmt: skip
        gc.freeze()
        gc.enable()
        sys.setswitchinterval(0.001)  # what answers people waits less for threads that read the log or encode an image
        with suppress(KeyboardInterrupt):  # how it ends
            uvicorn.Server(config).run(sockets=[listening])
    return 0


def _network(text: str) -> str:
    """Check that ``text`` is an address or a network; host names and ``*`` are refused."""
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; give addresses or networks, such as 127.0.0.1 or 10.0.0.0/8") from error


def _make_folder(directory: Path) -> None:
    """Make the run's folder, if ``fit`` has not yet; AnnotError where it holds other things, as a folder of images does."""
    there = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    if there and not there & _OF_A_RUN:
        raise AnnotError(
            f"{directory} is no run's folder: it holds {min(there)!r}, and none of {', '.join(sorted(_OF_A_RUN))}. "
            "Give the run's annotation.output_dir; one that is not there yet is made."
        )
    directory.mkdir(parents=True, exist_ok=True)


def _listen(host: str, port: int) -> socket.socket:
    try:
        listening = socket.create_server((host, port), backlog=512)
    except (OSError, OverflowError) as error:
        raise AnnotError(f"the page cannot listen at {host}:{port} ({error}); choose another --host or --port.") from error
    # Connections inherit it: else the body of an answer waits, up to 40 ms, until the client has acknowledged the head.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _invite(desk: object, names: list[str], renewed: list[str], base: str) -> None:
    """Print a link for each name; one who has a link keeps it, unless it is to be renewed."""
    from lightning_annot.annotations.desk import Desk
    from lightning_annot.annotations.worker_names import worker_name

    assert isinstance(desk, Desk)
    people, invited = desk.people(), [worker_name(name) for name in [*names, *renewed]]
    there = {person.worker for person in people if not person.revoked} - {*invited[len(names) :]}
    for name in dict.fromkeys(invited):
        if name in there:
            print(f"{name}: has a link already (--renew {name} makes a new one)", flush=True)
        else:
            print(f"{name}: {base}/w/{desk.invite(name)}", flush=True)
