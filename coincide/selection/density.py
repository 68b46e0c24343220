"""Density of clusters (paper section 3.3; DESIGN step 4)."""

import numpy as np

from coincide.base.rows import Rows, map_clusters, members_by_cluster
from coincide.selection.kernel import ClusterKernel


def density(x, labels, *, gamma=1.0, clusters=None, device="cpu"):
    """Mean Gaussian kernel over all ordered pairs of each cluster's members, each with itself included.

    D_i = 1/|C_i|² · sum over x, y in C_i of exp(-|x - y|² / (2γ²)).

    Args:
        x: (n, d) float16 or float32 array, an iterable of row blocks, or activations on disk
            (`coincide.base.activation_store.Activations`), of which a few clusters at a time are read.
        labels: (n,) integer cluster of each row; K is the largest label plus one.
        gamma: kernel width γ.
        clusters: (m,) the clusters asked for; None: all K.
        device: torch device; "cpu" works on clusters one by one, another on many at a time.

    Returns:
        (K,) or (m,) float64 in (0, 1]; 1 for a cluster of one, NaN for an empty cluster.

    Raises:
        ValueError: wrong shapes, NaN or infinity in x, or negative labels.

    Source: Lee, Li, Hwang (EMNLP 2024), section 3.3, equation for D_i.

    >>> import numpy as np
    >>> density(np.ones((3, 2), np.float32), [0, 0, 1]).tolist()
    [1.0, 1.0]
    """
    x, labels = Rows(x), np.asarray(labels)
    if labels.shape != (len(x),):
        raise ValueError(f"labels has shape {labels.shape}, x has {len(x)} rows")
    members = members_by_cluster(labels, labels.max() + 1)
    members = members if clusters is None else [members[c] for c in clusters]
    if device != "cpu":
        from coincide.selection.kernel_gpu import densities_on

        return densities_on(device, x, members, gamma=gamma)
    return np.array(list(map_clusters(lambda i, rows: _density(rows, gamma), x, members, "density")))


def _density(rows, gamma):
    return ClusterKernel(rows, gamma=gamma).means().mean() if len(rows) else np.nan
