"""The Gaussian kernel that density and picks share (paper section 3.3; DESIGN step 4), in float64.

The kernel of activations is close to 1 everywhere (distances on the unit sphere, γ = 1), and both its
mean and the differences between candidates lie in its last digits: float32 would decide picks by
its rounding.
"""

import numpy as np

from coincide.base.numba_support import bits
from coincide.selection import loops

WHOLE = 8192  # members up to which a cluster's kernel is held whole: half a GiB of float64
ROWS_PER_BLOCK = 1024  # rows of the kernel at once, of a larger cluster


def gaussian_kernel(x, y=None, *, gamma=1.0):
    """Gaussian kernel exp(-|x_i - y_j|² / (2γ²)) in float64.

    Args:
        x: (n, d) array.
        y: (m, d) array, or None for x against itself (diagonal exactly 1).
        gamma: kernel width γ, in the units of x.

    Returns:
        (n, m) float64 array.
    """
    # Centring leaves distances as they are and keeps |x|² + |y|² - 2xy from cancelling:
    # activations share a strong common mean.
    x = np.asarray(x, dtype=np.float64)
    centre = x.mean(axis=0)
    x = x - centre
    itself = y is None
    y = x if itself else np.asarray(y, dtype=np.float64) - centre
    squared = x @ y.T
    squared *= -2
    squared += (x**2).sum(axis=1)[:, None]
    squared += (y**2).sum(axis=1)[None, :]
    np.maximum(squared, 0.0, out=squared)
    if itself:
        np.fill_diagonal(squared, 0.0)
    squared *= -0.5 / gamma**2
    return np.exp(squared, out=squared)


class ClusterKernel:
    """Kernel among the members of one cluster: whole where it fits, else computed as it is asked for.

    Args:
        x: (n, d) activations of the members.
        gamma: kernel width γ.
    """

    def __init__(self, x, *, gamma=1.0):
        self.x, self.gamma = np.ascontiguousarray(x), gamma
        self.whole = gaussian_kernel(x, gamma=gamma) if len(x) <= WHOLE else None

    def column(self, i):
        """(n,) kernel of every member with member i, of a cluster that is not held whole."""
        squared = np.empty(len(self.x))
        loops.squared_distances(bits(self.x), i, squared)
        return np.exp(squared * (-0.5 / self.gamma**2))

    def means(self):
        """(n,) mean kernel of each member with the cluster, itself included."""
        if self.whole is not None:
            return self.whole.mean(axis=1)
        n, step = len(self.x), ROWS_PER_BLOCK
        total = np.zeros(n)
        for a in range(0, n, step):  # the kernel is symmetric: each pair of blocks once
            total[a : a + step] += gaussian_kernel(self.x[a : a + step], gamma=self.gamma).sum(axis=1)
            for b in range(a + step, n, step):
                block = gaussian_kernel(self.x[a : a + step], self.x[b : b + step], gamma=self.gamma)
                total[a : a + step] += block.sum(axis=1)
                total[b : b + step] += block.sum(axis=0)
        return total / n
