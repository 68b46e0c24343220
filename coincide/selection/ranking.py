"""Selection by a score per row, and nearest neighbours: what several methods share."""

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

NUMBERS_AT_ONCE = 2**23  # numbers of the differences that `squared_distances` holds
EXACT = 100_000  # rows up to which `nearest` compares each row with every other


def highest(scores: ArrayLike, count: int) -> NDArray[np.int64]:
    """(count,) rows with the highest scores, the highest first; ties go to the first row."""
    return np.argsort(-np.asarray(scores, np.float64), kind="stable")[:count]


def highest_of_groups(scores: NDArray[np.float64], groups: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The same fraction of each group: the rows with the highest scores.

    Each group gets the whole part of its share, and the groups with the largest remainders one row more.

    Args:
        scores: (n,) numbers.
        groups: (n,) integers.
        count: number of rows to keep.

    Returns:
        (count,) rows, group after group; ties go to the first row and to the smallest group.

    >>> highest_of_groups(np.array([1.0, 2, 3, 5, 4]), np.array([0, 0, 0, 1, 1]), 3).tolist()
    [2, 1, 3]
    """
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    sizes = np.array([len(rows) for rows in members])
    quotas, remainders = np.divmod(count * sizes, len(scores))
    quotas[np.argsort(-remainders, kind="stable")[: count - quotas.sum()]] += 1
    return np.concatenate([rows[highest(scores[rows], quota)] for rows, quota in zip(members, quotas)])


def nearest(x: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Nearest other rows of each row, by L2 distance.

    Exact up to EXACT rows; above, approximate by an inverted file. A row with fewer than k neighbours in the lists
    that are searched is compared with all rows.

    Args:
        x: (n, d) float32 rows.
        k: number of neighbours; at most n - 1 are returned.

    Returns:
        ((n, k) squared distances, (n, k) rows), the nearest first.
    """
    import faiss

    n, d = x.shape
    k = min(k, n - 1)
    search: Any = faiss.IndexFlatL2(d)
    if n > EXACT:
        search = faiss.IndexIVFFlat(search, d, int(np.sqrt(n)))
        search.train(x)
        search.nprobe = 16
    search.add(x)
    squared, index = search.search(x, k + 1)
    incomplete = (index < 0).any(axis=1)
    if incomplete.any():
        search.nprobe = search.nlist
        squared[incomplete], index[incomplete] = search.search(x[incomplete], k + 1)
    # The row itself is among the results, but not always first where it has copies; where more than k
    # copies displace it, the last result is dropped in its place.
    is_self = index == np.arange(n)[:, None]
    is_self[~is_self.any(axis=1), -1] = True
    return np.maximum(squared[~is_self].reshape(n, k), 0), index[~is_self].reshape(n, k)


def squared_distances(
    x: NDArray[np.float32], index: NDArray[np.int64], rows: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """Squared L2 distances of rows to others, from their differences.

    A search computes them from norms and dot products, which leaves no correct digits where rows are long and close.

    Args:
        x: (n, h) rows.
        index: (m, k) rows to measure the distance to.
        rows: (m,) rows to measure it from; None: all n.

    Returns:
        (m, k) float64.
    """
    rows = np.arange(len(x)) if rows is None else rows
    squared = np.empty(index.shape)
    step = max(1, NUMBERS_AT_ONCE // max(1, index.shape[1] * x.shape[1]))
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        difference = x[rows[block], None].astype(np.float64) - x[index[block]]
        squared[block] = np.einsum("nkh,nkh->nk", difference, difference)
    return squared


def band(scores: ArrayLike, count: int, keep: Literal["top", "middle", "bottom"]) -> NDArray[np.int64]:
    """(count,) rows of a band of the scores; ties go to the first row.

    Args:
        scores: (n,) numbers.
        count: number of rows to keep.
        keep: "top" (highest first), "bottom" (lowest first) or "middle" (the window of `count` ascending ranks that
            starts at n // 2 - count // 2, as in COINCIDE's training code; nearest to rank n // 2 first).
    """
    scores = np.asarray(scores, np.float64)
    if keep == "top":
        return highest(scores, count)
    order = np.argsort(scores, kind="stable")
    if keep == "middle":
        distance = np.abs(np.arange(len(order)) - len(order) // 2)
        order = order[np.argsort(distance, kind="stable")]
    return order[:count]
