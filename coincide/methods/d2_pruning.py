"""D2-Pruning (Maharana, Yadav, Bansal 2023): difficulty and diversity by messages on a graph of neighbours.

Nodes are samples, their difficulty the negative margin of the reference model (area under the margin,
of one look), scaled to 0..1; edges go to the k nearest by the mean embedding of the last layer.
"""

import heapq
from typing import Annotated

import numpy as np
from pydantic import Field

from coincide.selection.ranking import nearest

NEEDS = ("sample_metrics",)


def picks(
    tables,
    count,
    *,
    seed,
    neighbours: Annotated[int, Field(ge=1)] = 5,
    gamma: Annotated[float, Field(gt=0)] = 0.4,
):
    """Forward messages, then picks with reverse messages; see `messages`."""
    margin = tables.sample_metrics["margin"].to_numpy(np.float64)
    spread = np.ptp(margin)
    difficulty = (margin.max() - margin) / (spread or 1)
    squared, index = nearest(np.asarray(tables.embedding("mean"), np.float32), neighbours)
    return messages(difficulty, np.exp(-gamma * squared), index, count)


def messages(difficulty, weights, index, count):
    """Picks by message passing.

    Forward: s_i = x_i + Σ_j e_ij x_j over the neighbours j of i. Then, count times: the sample with the
    largest s is picked (ties: the first), and s_j falls by e_ij s_i for its neighbours j.

    Args:
        difficulty: (n,) x.
        weights: (n, k) e_ij = exp(-γ d(i, j)²).
        index: (n, k) neighbours.
        count: samples to pick.

    Returns:
        ((count,) rows in the order picked, (n,) s after the forward messages).
    """
    forward = difficulty + (weights * difficulty[index]).sum(axis=1)
    s, picked = forward.copy(), np.zeros(len(forward), bool)
    heap = [(-value, i) for i, value in enumerate(s)]
    heapq.heapify(heap)
    order = []
    while len(order) < count:
        value, i = heapq.heappop(heap)
        if picked[i] or -value != s[i]:  # an entry from before a message
            continue
        picked[i] = True
        order.append(i)
        for weight, j in zip(weights[i], index[i]):
            if not picked[j]:
                s[j] -= weight * s[i]
                heapq.heappush(heap, (-s[j], int(j)))
    return np.array(order, np.int64), forward
