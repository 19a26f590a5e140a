"""How many answers an item can get where questions go to anyone: a second opinion needs a second person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor


def most_answers(items: Sequence[str], answered: Iterable[tuple[str, str]], people: Collection[str]) -> Tensor:
    """One answer of each of the ``people``, who can be asked, at least one, and what others have said: (N,) int64 by item.

    ``answered``: (item, worker) pairs of all answers. Who is none of the people, as whoever came with imported answers, says
    no more.
    """
    others = Counter(item for item, worker in {*answered} if worker not in people)
    asked = max(1, len(people))
    return torch.tensor([asked + others[item] for item in items], dtype=torch.int64)
