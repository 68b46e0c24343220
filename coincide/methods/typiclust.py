"""TypiClust (Hacohen, Dekel, Weinshall 2022): from each cluster of the activations, the most typical samples.

A sample is typical if its nearest neighbours in its cluster are near. Clusters take turns, the largest first.
"""

from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from coincide.selection.ranking import nearest, squared_distances

if TYPE_CHECKING:
    from coincide.methods._inputs import MethodInputs

NEEDS = ()
SMALLEST_CLUSTER = 6  # smaller clusters are used only if the others do not have enough members
EPSILON = 1e-5  # added to mean distances
LOOKUP_FACTOR = 4  # times `neighbours` are looked up in advance, since picked samples no longer count


def pick(
    inputs: "MethodInputs",
    count: int,
    *,
    seed: int,
    max_clusters: Annotated[int, Field(ge=1)] = 500,
    neighbours: Annotated[int, Field(ge=1)] = 20,
) -> tuple[NDArray, NDArray]:
    """Keep, in turns, the most typical remaining sample of each cluster.

    There are as many clusters as samples to keep, at most `max_clusters`. The scores are the typicalities before the
    first pick.
    """
    from coincide.base.clustered_rows import ClusteredRows
    from coincide.clustering.kmeans import spherical_kmeans

    x = inputs.activations
    clustered = ClusteredRows(x, spherical_kmeans(x, min(count, max_clusters), seed=seed).labels)
    quotas = turns(clustered.sizes, count)
    results = clustered.map(
        lambda c, rows: most_typical(rows.astype(np.float32), int(quotas[c]), neighbours), description="TypiClust"
    )
    scores = np.empty(len(x))
    picks, turn, sizes = [], [], []
    for members, (order, typicality) in zip(clustered.members, results):
        scores[members] = typicality
        picks.append(members[order])
        turn.append(np.arange(len(order)))
        sizes.append(np.full(len(order), len(members)))
    in_turns = np.lexsort((-np.concatenate(sizes), np.concatenate(turn)))  # stable: then by the number of the cluster
    return np.concatenate(picks)[in_turns], scores


def turns(sizes: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """(K,) number of samples that each cluster gives until there are `count`.

    Clusters take turns, the largest first, of equal ones the first. A cluster without remaining members is skipped.
    Clusters with fewer than SMALLEST_CLUSTER members give none, unless the others do not have enough.

    >>> turns(np.array([6, 9, 2, 7]), 5).tolist()
    [1, 2, 0, 2]
    >>> turns(np.array([6, 9, 2, 7]), 23).tolist()
    [6, 9, 1, 7]
    """
    quotas = np.zeros(len(sizes), np.int64)
    for usable in (sizes >= SMALLEST_CLUSTER, sizes < SMALLEST_CLUSTER):
        missing = min(count - quotas.sum(), sizes[usable].sum())
        order = np.flatnonzero(usable)[np.argsort(-sizes[usable], kind="stable")]
        while missing > 0:
            turn = order[quotas[order] < sizes[order]][:missing]
            quotas[turn] += 1
            missing -= len(turn)
    return quotas


def most_typical(
    rows: NDArray[np.float32], count: int, neighbours: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The most typical of n rows, one after the other; picked rows no longer count as neighbours.

    The typicality of a row is 1 / (ε + mean distance to its k nearest remaining rows), with k = `neighbours`, or half
    of the remaining rows if that is fewer. Ties go to the first row.

    Args:
        rows: (n, d) rows.
        count: number of rows to pick.
        neighbours: largest k.

    Returns:
        ((count,) rows in the order picked, (n,) typicality before the first pick).

    Source: Hacohen, Dekel, Weinshall (2022), section 3.3.
    """
    n = len(rows)
    if n == 1:
        return np.arange(count), np.zeros(1)
    _, index = nearest(rows, LOOKUP_FACTOR * neighbours)
    distances = np.sqrt(squared_distances(rows, index))
    remaining = np.ones(n + 1, bool)
    remaining[-1] = False  # index -1 is no row

    def look_up(row):
        others = np.flatnonzero(remaining[:n] & (np.arange(n) != row))
        distance = np.sqrt(squared_distances(rows, others[None], np.array([row]))[0])
        found = np.argsort(distance, kind="stable")[: index.shape[1]]
        index[row], distances[row] = -1, 0.0
        index[row, : len(found)], distances[row, : len(found)] = others[found], distance[found]

    def mean_distances(of_rows, k):
        for row in of_rows[remaining[index[of_rows]].sum(axis=1) < k]:
            look_up(row)
        counts = remaining[index[of_rows]]
        counts &= counts.cumsum(axis=1) <= k
        return np.where(counts, distances[of_rows], 0.0).sum(axis=1) / max(k, 1)

    k = min(neighbours, n // 2)
    means = mean_distances(np.arange(n), k)
    typicality = 1 / (means + EPSILON)
    order: list[int] = []
    while len(order) < count:
        order.append(int(np.argmin(means)))
        remaining[order[-1]], means[order[-1]] = False, np.inf
        changed = remaining[:n] & (index == order[-1]).any(axis=1)
        if min(neighbours, remaining.sum() // 2) < k:
            k = min(neighbours, int(remaining.sum()) // 2)
            changed = remaining[:n]
        of_rows = np.flatnonzero(changed)
        means[of_rows] = mean_distances(of_rows, k)
    return np.array(order, np.int64), typicality
