"""Selection by a score per row, and nearest neighbours: what several methods share."""

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

EXACT = 100_000  # rows up to which `nearest` compares each row with every other


def highest(scores: ArrayLike, count: int) -> NDArray[np.int64]:
    """(count,) rows with the highest scores, the highest first; ties go to the first row."""
    return np.argsort(-np.asarray(scores, np.float64), kind="stable")[:count]


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
