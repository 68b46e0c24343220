"""Picks inside a cluster by greedy minimisation of MMD² (paper section 3.4; DESIGN step 7)."""

import numpy as np

from coincide.kernel import gaussian_kernel
from coincide.rows import Rows

TIE = 1e-12  # candidates whose MMD² differs by less than rounding are ties


def greedy_mmd(x, m, *, gamma=1.0):
    """Pick m members of a cluster whose distribution is closest to the cluster's.

    Each pick is the member that leaves the squared maximum mean discrepancy between the picks and
    the cluster smallest, under the Gaussian kernel k:

    MMD²(P, C) = mean k(p, p') - 2 mean k(p, c) + mean k(c, c').

    Running sums over the picks give the value of every candidate in O(n) a pick.

    Args:
        x: (n, d) activations of the cluster's members.
        m: number of picks, 0 <= m <= n.
        gamma: kernel width γ.

    Returns:
        (m,) int64 row positions, in the order picked; ties go to the lowest position.

    Raises:
        ValueError: m outside 0..n, wrong shape, NaN or infinity.

    Source: Kim, Khanna, Koyejo (NeurIPS 2016), as used by Lee, Li, Hwang (EMNLP 2024), section 3.4.

    >>> import numpy as np
    >>> greedy_mmd(np.array([[0.0], [1.0], [2.0]]), 1).tolist()
    [1]
    """
    n = len(rows := Rows(x))
    if not 0 <= m <= n:
        raise ValueError(f"m must be in 0..{n}; got {m}")
    kernel = gaussian_kernel(rows.take(np.arange(n)), gamma=gamma)
    to_cluster = kernel.mean(axis=1)  # mean kernel of each member with the cluster
    to_picks = np.zeros(n)  # summed kernel of each member with the picks so far
    within, across = 0.0, 0.0  # summed kernel among the picks, and of the picks with the cluster
    free = np.ones(n, dtype=bool)
    picks = np.empty(m, dtype=np.int64)
    for i in range(m):
        size = i + 1
        # MMD² after adding each member, less the cluster's own constant term
        value = (within + 2 * to_picks + 1.0) / size**2 - 2 * (across + to_cluster) / size
        value[~free] = np.inf
        pick = int(np.argmax(value <= value.min() + TIE))
        picks[i] = pick
        free[pick] = False
        within += 2 * to_picks[pick] + 1.0
        across += to_cluster[pick]
        to_picks += kernel[pick]
    return picks
