"""The Gaussian kernel that density and picks share (paper section 3.3), in float64.

The kernel of activations is close to 1 everywhere (distances on the unit sphere, γ = 1). Its mean and the
differences between candidates for a pick lie in the last digits, so float32 rounding would decide picks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coincide.base.numba_support import bits
from coincide.selection import loops

if TYPE_CHECKING:
    import torch

Results = list | NDArray  # one result per cluster

WHOLE = 8192  # members up to which a cluster's kernel is held whole: half a GiB of float64
ROWS_PER_BLOCK = 1024  # rows of the kernel computed at a time, in a larger cluster


def gaussian_kernel(x: NDArray, y: NDArray | None = None, *, gamma: float = 1.0) -> NDArray[np.float64]:
    """Gaussian kernel exp(-|x_i - y_j|² / (2γ²)) in float64.

    Args:
        x: (n, d) array.
        y: (m, d) array, or None for x against itself (diagonal exactly 1).
        gamma: kernel width γ, in the units of x.

    Returns:
        (n, m) float64 array.
    """
    # Centring does not change distances, and keeps |x|² + |y|² - 2xy from cancelling: activations
    # share a strong common mean.
    x = np.asarray(x, dtype=np.float64)
    centre = x.mean(axis=0)
    x = x - centre
    symmetric = y is None
    y = x if y is None else np.asarray(y, dtype=np.float64) - centre
    squared = x @ y.T
    squared *= -2
    squared += (x**2).sum(axis=1)[:, None]
    squared += (y**2).sum(axis=1)[None, :]
    np.maximum(squared, 0.0, out=squared)
    if symmetric:
        np.fill_diagonal(squared, 0.0)
    squared *= -0.5 / gamma**2
    return np.exp(squared, out=squared)


class ClusterKernel:
    """Kernel among the members of one cluster: held whole up to WHOLE members, else computed when needed.

    Args:
        x: (n, d) activations of the members.
        gamma: kernel width γ.
    """

    def __init__(self, x: NDArray, *, gamma: float = 1.0):
        self.x, self.gamma = np.ascontiguousarray(x), gamma
        self.whole = gaussian_kernel(x, gamma=gamma) if len(x) <= WHOLE else None

    def column(self, i: int) -> NDArray[np.float64]:
        """(n,) kernel of every member with member i, computed from the activations."""
        squared = np.empty(len(self.x))
        loops.squared_distances(bits(self.x), i, squared)
        return np.exp(squared * (-0.5 / self.gamma**2))

    def means(self) -> NDArray[np.float64]:
        """(n,) mean kernel of each member with the cluster, itself included."""
        if self.whole is not None:
            return self.whole.mean(axis=1)
        n, step = len(self.x), ROWS_PER_BLOCK
        total = np.zeros(n)
        for a in range(0, n, step):  # the kernel is symmetric: each pair of blocks is computed once
            total[a : a + step] += gaussian_kernel(self.x[a : a + step], gamma=self.gamma).sum(axis=1)
            for b in range(a + step, n, step):
                block = gaussian_kernel(self.x[a : a + step], self.x[b : b + step], gamma=self.gamma)
                total[a : a + step] += block.sum(axis=1)
                total[b : b + step] += block.sum(axis=0)
        return total / n


@dataclass(frozen=True)
class KernelFunction:
    """A function of a cluster's kernel that `ClusteredRows.map` evaluates on the CPU or on a device.

    Attributes:
        of_kernel: takes the number of a cluster and its `ClusterKernel`.
        of_batch: the same for b clusters at once, one result per cluster; takes their numbers and, on
            the device, their (b, n, n) kernels (0 beyond a cluster's members) and (b,) sizes.
        gamma: kernel width γ.
    """

    of_kernel: Callable[[int, ClusterKernel], Any]
    of_batch: Callable[[list[int], torch.Tensor, torch.Tensor], Results]
    gamma: float

    def __call__(self, cluster: int, rows: NDArray) -> Any:
        """Result for one cluster, on the CPU."""
        return self.of_kernel(cluster, ClusterKernel(rows, gamma=self.gamma))

    def fits(self, n_clusters: int, n_members: int, dimension: int) -> bool:
        """Whether a batch of clusters fits on the device."""
        from coincide.selection import kernel_gpu

        return n_clusters * kernel_gpu.cluster_bytes(n_members, dimension) <= kernel_gpu.BATCH_BYTES

    def batch(self, clusters: list[int], rows: NDArray, positions: list[NDArray], device: str) -> Results:
        """Results for a batch of clusters, on the device."""
        from coincide.selection import kernel_gpu

        kernels, sizes = kernel_gpu.batch_kernels(rows, positions, device=device, gamma=self.gamma)
        return self.of_batch(clusters, kernels, sizes)
