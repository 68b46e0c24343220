"""Density of clusters (paper section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coincide.base.clustered_rows import ClusteredRows
from coincide.base.rows import RowData
from coincide.selection.kernel import ClusterKernel, KernelFunction

if TYPE_CHECKING:
    import torch


def density(
    x: RowData,
    labels: ArrayLike,
    *,
    gamma: float = 1.0,
    clusters: Sequence[int] | NDArray | None = None,
    device: str = "cpu",
) -> NDArray[np.float64]:
    """Mean Gaussian kernel over all ordered pairs of each cluster's members, pairs of a member with itself included.

    D_i = 1/|C_i|² · sum over x, y in C_i of exp(-|x - y|² / (2γ²)).

    Args:
        x: (n, d) float16 or float32 array, an iterable of row blocks, or activations on disk
            (`coincide.base.activation_store.Activations`), which are read a few clusters at a time.
        labels: (n,) integer cluster of each row; K is the largest label plus one.
        gamma: kernel width γ.
        clusters: (m,) clusters to compute the density of; default: all K.
        device: torch device; "cpu" processes each cluster separately, another device many at a time.

    Returns:
        (K,) or (m,) float64 in (0, 1]; 1 for a cluster with one member, NaN for an empty cluster.

    Raises:
        ValueError: wrong shapes, NaN or infinity in x, or negative labels.

    Source: Lee, Li, Hwang (EMNLP 2024), section 3.3, equation for D_i.

    >>> import numpy as np
    >>> density(np.ones((3, 2), np.float32), [0, 0, 1]).tolist()
    [1.0, 1.0]
    """
    return cluster_densities(ClusteredRows(x, labels), gamma=gamma, clusters=clusters, device=device)


def cluster_densities(
    clustered: ClusteredRows,
    *,
    gamma: float = 1.0,
    clusters: Sequence[int] | NDArray | None = None,
    device: str = "cpu",
) -> NDArray[np.float64]:
    """`density` of rows whose members are already determined."""
    clusters = np.arange(len(clustered)) if clusters is None else np.asarray(clusters)
    has_members = clustered.sizes[clusters] > 0
    densities = np.full(len(clusters), np.nan)
    densities[has_members] = clustered.map(
        KernelFunction(_density, _densities, gamma), clusters[has_members], device=device, description="density"
    )
    return densities


def _density(cluster: int, kernel: ClusterKernel) -> float:
    return kernel.means().mean()


def _densities(clusters: list[int], kernels: torch.Tensor, sizes: torch.Tensor) -> NDArray[np.float64]:
    return (kernels.sum(dim=(1, 2)) / sizes**2).cpu().numpy()
