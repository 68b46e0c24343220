"""Picks inside a cluster by greedy minimisation of MMD² (paper section 3.4; DESIGN step 7)."""

import numpy as np

from coincide.base.progress import Progress
from coincide.base.rows import Rows
from coincide.selection import loops
from coincide.selection.kernel import ClusterKernel

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
    return greedy_picks(ClusterKernel(rows.take(np.arange(n)), gamma=gamma), m)


def greedy_picks(kernel, m):
    """`greedy_mmd` on the kernel of a cluster: a `ClusterKernel`, of which one column a pick is asked for."""
    to_cluster = kernel.means()
    n = len(to_cluster)
    picks = np.zeros(m, dtype=np.int64)
    running = to_cluster, np.zeros(n), np.ones(n, dtype=bool), np.zeros(2), picks
    if kernel.whole is not None:
        loops.greedy_additions(kernel.whole, *running, 0, m, TIE)
        return picks
    progress = Progress(m, "picks of a large cluster", unit="picks")
    column = np.zeros(n)
    for i in range(m):
        loops.greedy_additions(column[None], *running, i, i + 1, TIE)
        column = kernel.column(picks[i])
        progress.update(1)
    progress.close()
    return picks
