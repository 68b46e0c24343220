"""Picks inside clusters by greedy minimisation of the maximum mean discrepancy (paper section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from coincide.base.clustered_rows import ClusteredRows
from coincide.base.progress import Progress
from coincide.base.rows import RowData, Rows
from coincide.selection import loops
from coincide.selection.kernel import ClusterKernel, KernelFunction

if TYPE_CHECKING:
    import pandas as pd
    import torch

TIE = 1e-12  # candidates whose MMD² differs by less than this, the rounding error, are ties


def greedy_mmd(x: RowData, m: int, *, gamma: float = 1.0) -> NDArray[np.int64]:
    """Pick m members of a cluster whose distribution is closest to the cluster's.

    Each pick is the member that makes the squared maximum mean discrepancy between the picks P and
    the cluster C smallest, under the Gaussian kernel k:

    MMD²(P, C) = mean k(p, p') - 2 mean k(p, c) + mean k(c, c').

    Running sums over the picks give MMD² for every candidate in O(n) per pick.

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
    rows = Rows(x)
    n = len(rows)
    if not 0 <= m <= n:
        raise ValueError(f"m must be in 0..{n}; got {m}")
    return greedy_picks(ClusterKernel(rows.take(np.arange(n)), gamma=gamma), m)


def greedy_picks(kernel: ClusterKernel, m: int) -> NDArray[np.int64]:
    """`greedy_mmd` on the kernel of a cluster. A kernel that is not held whole is computed one column per pick."""
    to_cluster = kernel.means()
    n = len(to_cluster)
    picks = np.zeros(m, dtype=np.int64)
    # to the cluster, to the picks, members not yet picked, sums over the picks: see `greedy_additions`
    running = to_cluster, np.zeros(n), np.ones(n, dtype=bool), np.zeros(2), picks
    if kernel.whole is not None:
        loops.greedy_additions(kernel.whole, *running, 0, m, TIE)
        return picks
    with Progress(m, "picks of a large cluster", unit="picks") as progress:
        column = np.zeros(n)
        for i in range(m):
            loops.greedy_additions(column[None], *running, i, i + 1, TIE)
            column = kernel.column(picks[i])
            progress.update(1)
    return picks


def pick_members(
    clustered: ClusteredRows,
    stats: pd.DataFrame,
    *,
    gamma: float = 1.0,
    clusters: Sequence[int] | NDArray | None = None,
    within: str = "mmd",
    seed: int = 0,
    device: str = "cpu",
) -> NDArray[np.int64]:
    """Pick members of each cluster within its budget, clusters from the largest share to the smallest.

    Args:
        clustered: activations and their clusters.
        stats: table with columns share and budget, row i for cluster i.
        gamma: kernel width γ.
        clusters: (m,) clusters to pick from; default: all.
        within: "mmd" for greedy MMD, or "random" for random draws, for ablations.
        seed: seed of the random draws.
        device: as in `coincide.selection.density.density`.

    Returns:
        (B,) int64 rows of the activations.
    """
    budgets = stats["budget"].to_numpy()
    order = _by_share(stats)
    order = order[budgets[order] > 0]
    if clusters is not None:
        order = order[np.isin(order, clusters)]
    if within == "random":
        picks = [_draw(clustered.sizes[c], budgets[c], [seed, c]) for c in order]
    else:
        function = _greedy_function(budgets, gamma)
        picks = clustered.map(function, order, device=device, description="picks")
    rows = [clustered.members[c][positions] for c, positions in zip(order, picks)]
    return np.concatenate([np.empty(0, dtype=np.int64), *rows])


def rank_picks(indices: NDArray[np.int64], labels: NDArray, stats: pd.DataFrame) -> NDArray[np.int64]:
    """Put the picks of several groups of clusters in the order in which `pick_members` returns all: (B,) int64."""
    rank = np.empty(len(stats), np.int64)
    rank[_by_share(stats)] = np.arange(len(stats))
    return indices[np.argsort(rank[labels[indices]], kind="stable")]


def _by_share(stats: pd.DataFrame) -> NDArray[np.int64]:
    return np.argsort(-stats["share"].to_numpy(), kind="stable")


def _draw(size: int, budget: int, seed: list[int]) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(size)[:budget]


def _greedy_function(budgets: NDArray[np.int64], gamma: float) -> KernelFunction:
    """Positions of the picks among the members of a cluster, as many as its budget."""

    def of_kernel(cluster: int, kernel: ClusterKernel) -> NDArray[np.int64]:
        return greedy_picks(kernel, budgets[cluster])

    def of_batch(clusters: list[int], kernels: torch.Tensor, sizes: torch.Tensor) -> list[NDArray[np.int64]]:
        from coincide.selection.kernel_gpu import greedy_batch

        picks = greedy_batch(kernels, sizes, int(budgets[clusters].max()), tie=TIE).cpu().numpy()
        return [picks[i, : budgets[cluster]] for i, cluster in enumerate(clusters)]

    return KernelFunction(of_kernel, of_batch, gamma)
