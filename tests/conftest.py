"""Fixtures for tests of the whole command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import torch
from cli_runs import Bank
from postgres import new_database, running_postgres

if TYPE_CHECKING:
    from label_studio_server import Server

torch.set_num_threads(1)  # tests run side by side, and what is equal to the last bit is so with one number of threads

N, D, CLASSES = 300, 16, ("ant", "bee", "cow", "dog")


@pytest.fixture(scope="session")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    """A bank of N items around one centre a class, the truth, three prototypes a class, and three people's answers."""
    folder, rng = tmp_path_factory.mktemp("bank"), np.random.default_rng(0)
    truth = np.arange(N) % len(CLASSES)
    centres = rng.normal(scale=1.2, size=(len(CLASSES), D))
    np.save(folder / "features.npy", (centres[truth] + rng.normal(size=(N, D))).astype(np.float32))
    task = np.array([f"item{i:03d}" for i in range(N)])
    labels = pd.DataFrame({"task": task, "label": np.array(CLASSES)[truth]})
    labels.to_csv(folder / "labels.csv", index=False)
    labels[: 3 * len(CLASSES)].to_csv(folder / "prototypes.csv", index=False)
    said = np.where(rng.random((3, N)) < 0.8, truth, rng.integers(len(CLASSES), size=(3, N)))
    people = [
        pd.DataFrame(
            {"task": task, "worker": rng.permutation([f"p{3 * j + s}" for j in range(4)] * (N // 4)), "label": said_label}
        )
        for s, said_label in enumerate(np.array(CLASSES)[said])
    ]
    pd.concat(people).to_csv(folder / "answers.csv", index=False)
    return Bank(folder / "features.npy", folder / "labels.csv", folder / "prototypes.csv", folder / "answers.csv")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a PostgreSQL server; tests that ask for it are skipped where there is none."""
    with running_postgres() as url:
        yield url


@pytest.fixture(scope="session")
def _label_studio_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from label_studio_server import running

    with running(tmp_path_factory.mktemp("label-studio")) as server:
        yield server


@pytest.fixture
def label_studio(_label_studio_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The one Label Studio server, whose owner's token is in the environment."""
    from label_studio_server import TOKEN

    from lightning_annot.workers.label_studio_client import TOKEN_VARIABLE

    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    return _label_studio_server


@pytest.fixture(params=["sqlite", "postgresql"])
def new_log_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Makes URLs of annotation logs that are not there yet, in each kind of database."""
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres_server")
        return lambda: new_database(server)
    count = iter(range(1_000_000))
    return lambda: f"sqlite:///{tmp_path / f'log{next(count)}.db'}"


@pytest.fixture
def log_url(new_log_url: Callable[[], str]) -> str:
    """The URL of one such log."""
    return new_log_url()
