"""Picks inside clusters by greedy minimisation of the maximum mean discrepancy (paper section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


def greedy_picks(
    kernel: ClusterKernel, m: int, *, first: Sequence[int] | NDArray = (), excluded: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """`greedy_mmd` on the kernel of a cluster. A kernel that is not held whole is computed one column per pick.

    Args:
        kernel: of the cluster.
        m: number of picks; at least those in `first`, at most the members that are not excluded.
        first: members that are the first picks; the others are picked to go with them.
        excluded: (n,) members that are not picked; they still count as members of the cluster.
    """
    to_cluster = kernel.means()
    n = len(to_cluster)
    picks = np.zeros(m, dtype=np.int64)
    free = np.ones(n, dtype=bool) if excluded is None else ~excluded
    # to the cluster, to the picks, members that can be picked, sums over the picks: see `greedy_additions`
    running = to_cluster, np.zeros(n), free, np.zeros(2), picks
    forced = np.full(m, -1)
    forced[: len(first)] = first
    if kernel.whole is not None:
        loops.greedy_additions(kernel.whole, *running, forced, 0, m, TIE)
        return picks
    with Progress(m, "picks of a large cluster", unit="picks") as progress:
        column = np.zeros(n)
        for i in range(m):
            loops.greedy_additions(column[None], *running, forced, i, i + 1, TIE)
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
    kept: NDArray[np.bool_] | None = None,
    excluded: NDArray[np.bool_] | None = None,
    beyond_budget: bool = False,
) -> NDArray[np.int64]:
    """Pick members of each cluster within its budget, clusters from the largest share to the smallest.

    The samples to keep are among the picks of a cluster. Where greedy MMD does not pick them all within the budget,
    they are the first picks, and the others are picked to go with them.

    Args:
        clustered: activations and their clusters.
        stats: table with columns share and budget, row i for cluster i.
        gamma: kernel width γ.
        clusters: (m,) clusters to pick from; default: all.
        within: "mmd" for greedy MMD, or "random" for random draws, for ablations.
        seed: seed of the random draws.
        device: as in `coincide.selection.density.density`.
        kept: (n,) rows that are picked in any case; their cluster's budget is at least their number.
        excluded: (n,) rows that are never picked; the budget of a cluster is at most the number of its other members.
        beyond_budget: go on until all members that are not excluded are picked: `coincide.selection.constraints` takes
            the picks after the budget in place of others.

    Returns:
        (B,) int64 rows of the activations.
    """
    budgets = stats["budget"].to_numpy()
    wishes = [_Wishes.of(members, budget, kept, excluded) for members, budget in zip(clustered.members, budgets)]
    counts = np.array([(~wish.excluded).sum() for wish in wishes]) if beyond_budget else budgets
    order = _by_share(stats)
    order = order[counts[order] > 0]
    if clusters is not None:
        order = order[np.isin(order, clusters)]
    if within == "random":
        picks = [_draw(counts[c], [seed, c], wishes[c]) for c in order]
    else:
        function = _greedy_function(counts, gamma, wishes)
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


@dataclass(frozen=True)
class _Wishes:
    """What the picks of a cluster have to satisfy.

    Attributes:
        budget: number of the cluster's picks.
        kept: positions of the members to keep, among the members.
        excluded: (n,) members that are not picked.
    """

    budget: int
    kept: NDArray[np.int64]
    excluded: NDArray[np.bool_]

    @classmethod
    def of(cls, members, budget, kept, excluded):
        none = np.zeros(len(members), bool)
        return cls(
            int(budget),
            np.flatnonzero(none if kept is None else kept[members]),
            none if excluded is None else excluded[members],
        )

    def met_by(self, picks: NDArray[np.int64]) -> bool:
        """Whether all members to keep are among the picks within the budget."""
        return bool(np.isin(self.kept, picks[: self.budget]).all())


def _draw(count: int, seed: list[int], wishes: _Wishes) -> NDArray[np.int64]:
    drawn = np.random.default_rng(seed).permutation(len(wishes.excluded))
    drawn = drawn[~wishes.excluded[drawn]]
    if not wishes.met_by(drawn):
        drawn = np.concatenate([wishes.kept, drawn[~np.isin(drawn, wishes.kept)]])
    return drawn[:count]


def _greedy_function(counts: NDArray[np.int64], gamma: float, wishes: Sequence[_Wishes]) -> KernelFunction:
    """Positions of the picks among the members of a cluster, as many as `counts` says."""

    def of_kernel(cluster: int, kernel: ClusterKernel) -> NDArray[np.int64]:
        wish = wishes[cluster]
        picks = greedy_picks(kernel, counts[cluster], excluded=wish.excluded)
        if wish.met_by(picks):
            return picks
        return greedy_picks(kernel, counts[cluster], first=wish.kept, excluded=wish.excluded)

    def of_batch(clusters: list[int], kernels: torch.Tensor, sizes: torch.Tensor) -> list[NDArray[np.int64]]:
        from coincide.selection.kernel_gpu import greedy_batch

        n, m = kernels.shape[1], int(counts[clusters].max())
        excluded, first = np.zeros((len(clusters), n), bool), np.full((len(clusters), m), -1)
        for i, cluster in enumerate(clusters):
            excluded[i, : len(wishes[cluster].excluded)] = wishes[cluster].excluded
        picks = greedy_batch(kernels, sizes, m, tie=TIE, first=first, excluded=excluded).cpu().numpy()
        unmet = [i for i, cluster in enumerate(clusters) if not wishes[cluster].met_by(picks[i])]
        if unmet:
            for i in unmet:
                first[i, : len(wishes[clusters[i]].kept)] = wishes[clusters[i]].kept
            picks = greedy_batch(kernels, sizes, m, tie=TIE, first=first, excluded=excluded).cpu().numpy()
        return [picks[i, : counts[cluster]] for i, cluster in enumerate(clusters)]

    return KernelFunction(of_kernel, of_batch, gamma)
