"""Self-Filter (Chen et al. 2024): the samples that stay hard while the target model learns, with diversity.

Difficulty comes from a scoring network that is trained with the target model on the full data
(`coincide.training.difficulty`), usually the most expensive step of a comparison.
"""

import heapq
from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from coincide.base.rows import unit_rows
from coincide.selection.ranking import nearest

if TYPE_CHECKING:
    from coincide.methods._inputs import MethodInputs

NEEDS = ("clip_scores", "difficulty")
LOOKUP_FACTOR = 8  # times `neighbours` are looked up in advance, since picked samples no longer count


def pick(
    inputs: "MethodInputs",
    count: int,
    *,
    seed: int,
    neighbours: Annotated[int, Field(ge=1)] = 10,
    gamma: Annotated[float, Field(ge=0)] = 1.0,
) -> tuple[NDArray, NDArray]:
    """Keep the hardest samples under a diversity penalty; see `pick_diverse`."""
    unit = unit_rows(np.asarray(inputs.clip_embeddings, np.float32))
    return pick_diverse(inputs.difficulty, unit, count, neighbours, gamma), inputs.difficulty


def pick_diverse(
    difficulty: NDArray[np.float64], unit: NDArray[np.float32], count: int, neighbours: int, gamma: float
) -> NDArray[np.int64]:
    """Picks with the diversity penalty of the published code.

    Count times: pick the sample i with the largest difficulty d (ties: the first row); then, for the
    samples j nearest to it among those not yet picked, subtract γ d_i cos(i, j)² from d_j. Where d_i
    is negative, this increases d_j.

    Args:
        difficulty: (n,) d.
        unit: (n, e) CLIP embeddings, unit rows.
        count: number of samples to pick.
        neighbours: number of nearest samples that are penalised.
        gamma: weight γ of the penalty.

    Returns:
        (count,) rows in the order picked.
    """
    d, available = np.array(difficulty, np.float64), np.ones(len(difficulty), bool)
    squared, index = nearest(unit, LOOKUP_FACTOR * neighbours)
    heap = [(-value, i) for i, value in enumerate(d)]
    heapq.heapify(heap)
    order: list[int] = []
    while len(order) < count:
        value, i = heapq.heappop(heap)
        if not available[i] or -value != d[i]:  # outdated: a penalty has changed d_i since
            continue
        available[i] = False
        order.append(i)
        penalised = min(neighbours, available.sum())
        usable = available[index[i]]
        if usable.sum() >= penalised:
            nearby, cosine = index[i][usable][:penalised], 1 - squared[i][usable][:penalised] / 2
        else:  # too many of the samples looked up are already picked: compare with all
            cosine = unit @ unit[i]
            nearby = np.argsort(-np.where(available, cosine, -np.inf), kind="stable")[:penalised]
            cosine = cosine[nearby]
        d[nearby] -= gamma * d[i] * cosine.astype(np.float64) ** 2
        for j in nearby:
            heapq.heappush(heap, (-d[j], int(j)))
    return np.array(order, np.int64)
