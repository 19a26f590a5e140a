"""Simulated workers from the AMT confusion study of Liao, Kar & Fidler 2021 (supplement, Listing 1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from lightning_annot.annotations.text import read_text
from lightning_annot.exchange.confusions import read_counts
from lightning_annot.types import OTHER, AnnotError
from lightning_annot.workers.simulated import Matrix, SimulatedWorkers, spread_evenly

GROUP_NAMES = ("dog", "vertebrate", "insect+fungus", "objects", "commodity", "things")


class AMTWorkers(SimulatedWorkers):
    """Each worker mixes, in every group of classes, all people's counts with those of one person (Listing 1).

    ``workers_file``: JSON with ``imagenet100`` (class ids) and ``group_workers`` {group: (people, 100, 100) counts}.
    ``groups_file``: six blocks of class ids, named dog, vertebrate, insect+fungus, objects, commodity, things in this order;
    None: all ids are one group, as in a study of one's own (``lightning-annot confusions``).
    The first K ids of ``group`` stand for the task's K classes, in order, unless the classes are such ids themselves.
    Where the last class is ``OTHER``, the ids of the file that stand for no class are merged into it.
    ``smooth``: share of the summed counts beside one person's (0.1 is the released 1 : 10). ``outside``: mass moved from inside
    a class's group to classes outside it, where there are any. ``noise``: ``uniform`` keeps the diagonal and spreads errors.
    """

    def __init__(
        self,
        workers_file: str,
        groups_file: str | None = None,
        group: str = "dog",
        n_workers: int = 50,
        smooth: float = 0.1,
        outside: float = 0.03,
        noise: Literal["structured", "uniform"] = "structured",
        spammers: float = 0.0,
    ) -> None:
        super().__init__(n_workers, spammers)
        if group not in GROUP_NAMES:
            raise AnnotError(f"group {group!r} given; allowed are {', '.join(GROUP_NAMES)}.")
        if smooth <= 0 or not 0 <= outside < 1:  # without smoothing, classes that a person was never shown have empty rows
            raise AnnotError(f"smooth {smooth}, outside {outside} given; need above 0, and 0 up to below 1.")
        self.workers_file, self.groups_file, self.group = workers_file, groups_file, group
        self.smooth, self.outside, self.noise = smooth, outside, noise

    def confusions(self, classes: Sequence[str], seed: int) -> Matrix:
        """Worker j's people are drawn by (seed, j), so neighbouring seeds share nobody but by chance."""
        ids, people, blocks = self._read()
        named = [name for k, name in enumerate(classes) if (k, name) != (len(classes) - 1, OTHER)]
        chosen = self._chosen(named, ids, blocks)
        member = _membership(chosen, ids, with_other=len(named) < len(classes))
        inside = _inside(chosen, blocks, with_other=len(named) < len(classes))
        # Only the task's classes are kept, so cut and merge first: (people of the group, K, K).
        cut = [member.T @ counts @ member for counts in people]
        return np.stack([self._worker(cut, inside, np.random.default_rng((seed, j))) for j in range(self.n_workers)])

    def _worker(self, people: list[Matrix], inside: np.ndarray, rng: np.random.Generator) -> Matrix:
        total = np.zeros(inside.shape)
        for counts in people:
            total += self.smooth * counts.sum(0) + counts[rng.integers(len(counts))]
        matrix = total / total.sum(1, keepdims=True)
        matrix = _move_outside(matrix, inside, self.outside)
        return spread_evenly(matrix.diagonal()) if self.noise == "uniform" else matrix

    def _read(self) -> tuple[list[str], list[Matrix], list[list[str]]]:
        for path in (self.workers_file, self.groups_file):
            if path is not None and not Path(path).is_file():
                raise AnnotError(
                    f"{path} does not exist. It comes with the released code of the paper (AMT confusion study); give its path "
                    "as annotation.workers.init_args.workers_file or groups_file."
                )
        ids, groups = read_counts(Path(self.workers_file))
        people = [counts.astype(float) for counts in groups.values()]
        if not ids or not people or not all(len(counts) for counts in people):
            raise AnnotError(f"{self.workers_file} has {len(ids)} classes and {len(people)} groups; each needs people.")
        unseen = np.flatnonzero(sum(counts.sum((0, 2)) for counts in people) == 0)
        if len(unseen):
            raise AnnotError(f"{self.workers_file} has no answer about {[ids[i] for i in unseen[:5]]}; each class needs some.")
        if self.groups_file is None:
            return ids, people, [ids]
        text = read_text(Path(self.groups_file))[0].replace("\r\n", "\n")
        blocks = [block.split() for block in text.strip().split("\n\n")]
        if len(blocks) != len(GROUP_NAMES):
            raise AnnotError(f"{self.groups_file} has {len(blocks)} blocks of ids; {len(GROUP_NAMES)} are expected.")
        return ids, people, blocks

    def _chosen(self, classes: Sequence[str], ids: list[str], blocks: list[list[str]]) -> list[str]:
        if set(classes) <= set(ids):
            return list(classes)
        members = blocks[0] if self.groups_file is None else blocks[GROUP_NAMES.index(self.group)]
        if self.groups_file is None and len(classes) > len(members):
            raise AnnotError(
                f"the task has {len(classes)} classes; the study in {self.workers_file} has {len(members)}, such as "
                f"{', '.join(members[:8])}. Simulate its workers on images of these classes."
            )
        if len(classes) > len(members):
            raise AnnotError(
                f"the task has {len(classes)} classes; group {self.group!r} has {len(members)}. Choose another group."
            )
        return members[: len(classes)]


def _membership(chosen: list[str], ids: list[str], *, with_other: bool) -> Matrix:
    """Which id of the file belongs to which class, (ids, K) of 0 and 1; ``OTHER`` has all ids that are not chosen."""
    member: Matrix = np.equal.outer(np.array(ids), np.array(chosen)).astype(float)
    if not with_other:
        return member
    foreign = 1.0 - member.sum(1, keepdims=True)
    if not foreign.any():
        raise AnnotError(
            f"the task has all {len(ids)} classes of the AMT study, so it knows nothing of {OTHER!r}; give fewer in "
            "data.classes, or data.distractors: 0."
        )
    return np.hstack([member, foreign])


def _inside(chosen: list[str], blocks: list[list[str]], *, with_other: bool) -> np.ndarray:
    """Whether column and row are of one group, (K, K) bool; ``OTHER`` is outside all groups, and nothing is outside of it."""
    block = {name: b for b, members in enumerate(blocks) for name in members}
    of = np.array([block[name] for name in chosen] + [-1] * with_other)
    inside: np.ndarray = np.equal.outer(of, of)
    inside[of == -1] = True
    return inside


def _move_outside(matrix: Matrix, inside: np.ndarray, share: float) -> Matrix:
    """Move ``share`` of each row's mass inside the class's group evenly to classes outside it; rows without any stay."""
    n_outside = (~inside).sum(1, keepdims=True)
    moved = np.where(n_outside > 0, share, 0.0)
    spread = moved * (matrix * inside).sum(1, keepdims=True) / np.maximum(n_outside, 1)
    return np.where(inside, matrix * (1.0 - moved), matrix + spread)
