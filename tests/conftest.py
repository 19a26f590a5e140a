"""Fixtures for tests of the whole command line."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from cli_runs import Bank

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
def _one_thread() -> None:
    """What is equal to the last bit is so with one number of threads."""
    torch.set_num_threads(1)
