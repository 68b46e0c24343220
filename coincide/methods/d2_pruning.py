"""D2-Pruning (Maharana, Yadav, Bansal 2023): difficulty and diversity by message passing on a graph of neighbours.

Nodes are samples. Their difficulty x is the negative margin of the reference model (area under the margin,
from a single pass), scaled to 0..1. Each node i has edges e_ij = exp(-γ d(i, j)²) to its k nearest nodes j by
the mean embedding of the last layer.
"""

import heapq
from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from coincide.selection.ranking import nearest

if TYPE_CHECKING:
    from coincide.methods._inputs import MethodInputs

NEEDS = ("sample_metrics",)


def pick(
    inputs: "MethodInputs",
    count: int,
    *,
    seed: int,
    neighbours: Annotated[int, Field(ge=1)] = 5,
    gamma: Annotated[float, Field(gt=0)] = 0.4,
) -> tuple[NDArray, NDArray]:
    """Keep the samples that `pass_messages` picks on the graph of the k = `neighbours` nearest."""
    margin = inputs.sample_metrics["margin"].to_numpy(np.float64)
    difficulty = (margin.max() - margin) / (np.ptp(margin) or 1)
    squared, index = nearest(np.asarray(inputs.embedding("mean"), np.float32), neighbours)
    return pass_messages(difficulty, np.exp(-gamma * squared), index, count)


def pass_messages(
    difficulty: NDArray[np.float64], weights: NDArray, index: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Picks by forward and reverse message passing.

    Forward: s_i = x_i + Σ_j e_ij x_j over the neighbours j of i. Reverse, count times: pick the sample i
    with the largest s (ties: the first row), and subtract e_ij s_i from s_j for each of its neighbours j.

    Args:
        difficulty: (n,) x.
        weights: (n, k) e_ij.
        index: (n, k) neighbours j.
        count: number of samples to pick.

    Returns:
        ((count,) rows in the order picked, (n,) s after the forward messages).
    """
    forward = difficulty + (weights * difficulty[index]).sum(axis=1)
    s, picked = forward.copy(), np.zeros(len(forward), bool)
    heap = [(-value, i) for i, value in enumerate(s)]
    heapq.heapify(heap)
    order: list[int] = []
    while len(order) < count:
        value, i = heapq.heappop(heap)
        if picked[i] or -value != s[i]:  # outdated: a message has changed s_i since
            continue
        picked[i] = True
        order.append(i)
        for weight, j in zip(weights[i], index[i]):
            if not picked[j]:
                s[j] -= weight * s[i]
                heapq.heappush(heap, (-s[j], int(j)))
    return np.array(order, np.int64), forward
