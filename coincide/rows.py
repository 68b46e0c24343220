"""Reading (n, d) data that is either an array or something that yields row blocks."""

import numpy as np


def as_matrix(x):
    """Return x as one (n, d) numpy array.

    Args:
        x: (n, d) array, or an iterable of (n_i, d) arrays in row order.

    Raises:
        ValueError: if x is not two-dimensional, is empty, or holds NaN or infinity.
    """
    matrix = x if isinstance(x, np.ndarray) else np.concatenate([np.asarray(b) for b in x])
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"x must have shape (n, d) with n, d > 0; got shape {matrix.shape}")
    finite = np.isfinite(matrix).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"x has {np.count_nonzero(~finite)} rows with NaN or infinity, the first is row {np.argmin(finite)}"
        )
    return matrix


def members_by_cluster(labels, k):
    """Split row positions by cluster, each in ascending order.

    Args:
        labels: (n,) integer cluster of each row, in 0..k-1.
        k: number of clusters.

    Returns:
        List of k int64 arrays.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or (labels.size and not 0 <= labels.min() <= labels.max() < k):
        raise ValueError(f"labels must be a vector of integers in 0..{k - 1}")
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.cumsum(np.bincount(labels, minlength=k))[:-1])


def unit_rows(x):
    """Scale each row of x (n, d) to unit L2 norm in its own dtype; zero rows stay zero."""
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norm > 0, norm, 1)
