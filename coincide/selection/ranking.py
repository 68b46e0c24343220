"""Choices by score and nearest neighbours, for several methods."""

import numpy as np

EXACT = 100_000  # rows up to which `nearest` compares each with each


def highest(scores, count):
    """(count,) rows with the highest scores, the highest first; ties: the first row."""
    return np.argsort(-np.asarray(scores, np.float64), kind="stable")[:count]


def nearest(x, k):
    """(squared distances, rows) of the k nearest other rows of each of n rows: (n, k) each, the nearest first.

    Up to EXACT rows each is compared with each; above, through an inverted file.
    """
    import faiss

    n, d = x.shape
    k = min(k, n - 1)
    if n <= EXACT:
        search = faiss.IndexFlatL2(d)
    else:
        search = faiss.IndexIVFFlat(faiss.IndexFlatL2(d), d, int(np.sqrt(n)))
        search.train(x)
        search.nprobe = 16
    search.add(x)
    squared, index = search.search(x, k + 1)
    # itself is among them, but for copies not always the first
    own = index == np.arange(n)[:, None]
    own[~own.any(axis=1), -1] = True
    return np.maximum(squared[~own].reshape(n, k), 0), index[~own].reshape(n, k)


def band(scores, count, keep):
    """(count,) rows of a band of the scores.

    Args:
        scores: (n,) numbers.
        count: rows to keep.
        keep: "top" (highest first), "bottom" (lowest first) or "middle" (nearest to the middle rank first).
    """
    scores = np.asarray(scores, np.float64)
    if keep == "top":
        return highest(scores, count)
    order = np.argsort(scores, kind="stable")
    if keep == "middle":
        order = order[np.argsort(np.abs(np.arange(len(order)) - (len(order) - 1) / 2), kind="stable")]
    return order[:count]
