"""Self-Filter (Chen et al. 2024): the samples that stay hard while the target model learns, unlike each other.

Difficulty is read off a scoring network that is trained along with the target model on everything
(`coincide.training.difficulty`), as a rule the dearest part of a comparison.
"""

import heapq
from typing import Annotated

import numpy as np
from pydantic import Field

from coincide.base.rows import unit_rows
from coincide.selection.ranking import nearest

NEEDS = ("clip_scores", "difficulty")
AHEAD = 8  # times as many neighbours are looked up at first, as those picked no longer count


def picks(
    tables,
    count,
    *,
    seed,
    neighbours: Annotated[int, Field(ge=1)] = 10,
    gamma: Annotated[float, Field(ge=0)] = 1.0,
):
    """The hardest first, each of which makes its neighbours count as easier; see `unlike`."""
    unit = unit_rows(np.asarray(tables.clip_embeddings, np.float32))
    return unlike(tables.difficulty, unit, count, neighbours, gamma), tables.difficulty


def unlike(difficulty, unit, count, neighbours, gamma):
    """Picks with the diversity penalty of the published code.

    Count times: the sample with the largest difficulty d_i is picked (ties: the first); of the others not
    yet picked, d_j falls by γ d_i cos(i, j)² for those nearest to it. Where d_i is below zero it rises.

    Args:
        difficulty: (n,) d.
        unit: (n, e) CLIP embeddings, unit rows.
        count: samples to pick.
        neighbours: how many the penalty meets.
        gamma: γ.

    Returns:
        (count,) rows in the order picked.
    """
    d, left = np.array(difficulty, np.float64), np.ones(len(difficulty), bool)
    squared, index = nearest(unit, AHEAD * neighbours)
    heap = [(-value, i) for i, value in enumerate(d)]
    heapq.heapify(heap)
    order = []
    while len(order) < count:
        value, i = heapq.heappop(heap)
        if not left[i] or -value != d[i]:  # an entry from before a penalty
            continue
        left[i] = False
        order.append(i)
        near = left[index[i]]
        if near.sum() >= min(neighbours, left.sum()):
            others, cosine = index[i][near][:neighbours], 1 - squared[i][near][:neighbours] / 2
        else:  # too many of those looked up are picked
            cosine = unit @ unit[i]
            others = np.argsort(-np.where(left, cosine, -np.inf), kind="stable")[: min(neighbours, left.sum())]
            cosine = cosine[others]
        d[others] -= gamma * d[i] * cosine.astype(np.float64) ** 2
        for j in others:
            heapq.heappush(heap, (-d[j], int(j)))
    return np.array(order, np.int64)
