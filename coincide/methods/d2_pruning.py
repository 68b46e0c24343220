"""D2-Pruning (Maharana, Yadav, Bansal 2023): importance and diversity by message passing on a graph of neighbours.

By default as COINCIDE's code runs it as a baseline (Lee et al. 2024). Nodes are samples. The importance x of a sample
is its margin under the reference model (area under the margin, from a single pass), so the easiest samples count most.
The edge from node i to one of its k nearest nodes j has the squared L2 distance d_ij of their mean embeddings of the
last layer, which are not scaled to unit norm.
"""

import heapq
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from coincide.selection.ranking import nearest, squared_distances

if TYPE_CHECKING:
    from coincide.methods._inputs import MethodInputs

NEEDS = ("sample_metrics",)
SMALLEST = 1e-7  # smallest importance


def pick(
    inputs: "MethodInputs",
    count: int,
    *,
    seed: int,
    keep: Literal["easy", "hard"] = "easy",
    neighbours: Annotated[int, Field(ge=1)] = 5,
    forward_gamma: Annotated[float, Field(ge=0)] = 1.0,
    reverse_gamma: Annotated[float, Field(ge=0)] = 0.4,
) -> tuple[NDArray, NDArray]:
    """Keep the samples that `pass_messages` picks on the graph of the k = `neighbours` nearest.

    keep: "easy" (COINCIDE's baseline: the importance is the margin) or "hard" (as for the classifiers of the D2-Pruning
    paper: the importance is the largest margin of all samples minus the margin).
    """
    margin = inputs.sample_metrics["margin"].to_numpy(np.float64)
    importance = margin if keep == "easy" else margin.max() - margin
    x = np.asarray(inputs.embedding("mean"), np.float32)
    _, index = nearest(x, neighbours)
    squared = squared_distances(x, index)
    return pass_messages(importance, squared, index, count, forward_gamma, reverse_gamma)


def pass_messages(
    importance: NDArray[np.float64],
    squared: NDArray[np.float64],
    index: NDArray[np.int64],
    count: int,
    forward_gamma: float,
    reverse_gamma: float,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Picks by forward and reverse message passing.

    Forward: s_i = max(x_i, ε) + Σ_j exp(-γ_f d_ij) max(x_j, ε) over the neighbours j of i. Reverse, count times: pick
    the sample i with the largest s (ties: the first row), and subtract exp(-γ_r d_ij) s_i from s_j for each of its
    neighbours j.

    Args:
        importance: (n,) x.
        squared: (n, k) squared distances d_ij.
        index: (n, k) neighbours j.
        count: number of samples to pick.
        forward_gamma: γ_f.
        reverse_gamma: γ_r.

    Returns:
        ((count,) rows in the order picked, (n,) s after the forward messages).
    """
    x = np.maximum(importance, SMALLEST)
    forward = x + (np.exp(-forward_gamma * squared) * x[index]).sum(axis=1)
    weights = np.exp(-reverse_gamma * squared)
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
