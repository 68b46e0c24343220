"""Density of clusters (paper section 3.3; DESIGN step 4)."""

import numpy as np

from coincide.kernel import gaussian_kernel
from coincide.rows import Rows, members_by_cluster

ROWS_PER_BLOCK = 2048  # bounds the kernel block at ROWS_PER_BLOCK × cluster size float64


def density(x, labels, *, gamma=1.0):
    """Mean Gaussian kernel over all ordered pairs of each cluster's members, each with itself included.

    D_i = 1/|C_i|² · sum over x, y in C_i of exp(-|x - y|² / (2γ²)).

    Args:
        x: (n, d) float16 or float32 array, an iterable of row blocks, or activations on disk
            (`coincide.storage.Activations`), of which one cluster at a time is read.
        labels: (n,) integer cluster of each row; K is the largest label plus one.
        gamma: kernel width γ.

    Returns:
        (K,) float64 in (0, 1]; 1 for a cluster of one, NaN for an empty cluster.

    Raises:
        ValueError: wrong shapes, NaN or infinity in x, or negative labels.

    Source: Lee, Li, Hwang (EMNLP 2024), section 3.3, equation for D_i.

    >>> import numpy as np
    >>> density(np.ones((3, 2), np.float32), [0, 0, 1]).tolist()
    [1.0, 1.0]
    """
    x = Rows(x)
    labels = np.asarray(labels)
    if labels.shape != (len(x),):
        raise ValueError(f"labels has shape {labels.shape}, x has {len(x)} rows")
    return np.array([_cluster_density(x.take(m), gamma) for m in members_by_cluster(labels, labels.max() + 1)])


def _cluster_density(members, gamma):
    n = len(members)
    if n == 0:
        return np.nan
    if n <= ROWS_PER_BLOCK:
        return gaussian_kernel(members, gamma=gamma).mean()
    rows = (gaussian_kernel(members[s : s + ROWS_PER_BLOCK], members, gamma=gamma) for s in range(0, n, ROWS_PER_BLOCK))
    return sum(block.sum() for block in rows) / n**2
