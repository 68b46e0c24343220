"""The selection as a whole: clusters in, coreset out (paper section 3; DESIGN steps 3 to 7)."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from coincide.base.rows import Rows, map_clusters, members_by_cluster
from coincide.selection.budget import allocate, shares, total_budget
from coincide.selection.density import density
from coincide.selection.kernel import ClusterKernel
from coincide.selection.picks import greedy_picks
from coincide.selection.transferability import transferability


@dataclass(frozen=True)
class Coreset:
    """Picked rows and the numbers behind them.

    Attributes:
        indices: (B,) int64 rows of x, cluster by cluster from the largest share to the smallest,
            in the order picked.
        cluster_stats: one row a cluster: cluster, size, transferability, density, share, budget.
    """

    indices: np.ndarray
    cluster_stats: pd.DataFrame


def select(
    x,
    labels,
    centroids,
    *,
    fraction,
    temperature=0.1,
    gamma=1.0,
    blocks=None,
    exclude_above=0.9,
    device="cpu",
):
    """Select a fraction of the samples by transferability and density of their clusters.

    Args:
        x: (n, d) float16 or float32 activations, an iterable of row blocks, or activations on disk
            (`coincide.base.activation_store.Activations`), of which one cluster at a time is read.
        labels: (n,) integer cluster of each row, in 0..K-1.
        centroids: (K, d) centroids.
        fraction: share of the samples to keep, in (0, 1]; floor(fraction · n) are kept.
        temperature: τ of the softmax over clusters.
        gamma: kernel width γ of density and picks.
        blocks: columns for transferability (see `transferability`).
        exclude_above: cosine above which centroids count as near-copies.
        device: torch device of the three steps; see `density`.

    Returns:
        Coreset.

    Raises:
        ValueError: fraction outside (0, 1], or what the steps raise.

    Source: Lee, Li, Hwang (EMNLP 2024), section 3.

    >>> import numpy as np
    >>> x = np.eye(4, dtype=np.float32)
    >>> select(x, [0, 0, 1, 1], np.array([[1.0, 1, 0, 0], [0, 0, 1, 1]]), fraction=0.5).indices.tolist()
    [0, 2]
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1]; got {fraction}")
    x = Rows(x).x  # row blocks that can be read once are wanted twice below
    labels = np.asarray(labels)
    sizes = np.bincount(labels, minlength=len(centroids))
    if len(sizes) != len(centroids):
        raise ValueError(f"labels reach cluster {labels.max()}, there are {len(centroids)} centroids")
    densities = np.full(len(sizes), np.nan)  # clusters after the last label are empty
    densities[: labels.max() + 1] = density(x, labels, gamma=gamma, device=device)
    stats = shares_table(
        sizes,
        transferability(centroids, blocks=blocks, exclude_above=exclude_above, device=device),
        densities,
        temperature=temperature,
    )
    stats["budget"] = budget_table(stats, fraction, temperature=temperature)["budget"]
    indices = pick_members(x, labels, stats, gamma=gamma, device=device)
    return Coreset(indices, stats)


def shares_table(sizes, transferabilities, densities, *, temperature=0.1, weigh_density=True):
    """Table of cluster, size, transferability, density and share, one row per cluster.

    With weigh_density=False every density counts, and is shown, as 1.
    """
    stats = pd.DataFrame(
        {
            "cluster": np.arange(len(sizes), dtype=np.int32),
            "size": np.asarray(sizes, dtype=np.int64),
            "transferability": transferabilities,
            "density": densities if weigh_density else np.ones_like(densities),
        }
    )
    return stats.assign(share=shares(scores_of(stats), temperature=temperature))


def scores_of(stats):
    """(K,) transferability / density of the clusters of a table of `shares_table`."""
    return (stats["transferability"] / stats["density"]).to_numpy()


def budget_table(stats, fraction, *, temperature=0.1):
    """Table of cluster and budget for a fraction, from a table of `shares_table`."""
    sizes = stats["size"].to_numpy()
    budgets = allocate(scores_of(stats), sizes, total_budget(fraction, sizes.sum()), temperature=temperature)
    return pd.DataFrame({"cluster": stats["cluster"], "budget": budgets})


def pick_members(x, labels, stats, *, gamma=1.0, clusters=None, within="mmd", seed=0, device="cpu"):
    """Greedy MMD picks of every cluster, clusters from the largest share to the smallest.

    Args:
        x: (n, d) activations, as `select` takes them.
        labels: (n,) cluster of each row.
        stats: table with columns share and budget, row i for cluster i.
        gamma: kernel width γ.
        clusters: (m,) the clusters to pick from; None: all.
        within: "mmd", or "random": draws in its place, for ablations.
        seed: of the draws.
        device: as `density` takes it.

    Returns:
        (B,) int64 rows of x.
    """
    members = members_by_cluster(labels, len(stats))
    budgets = stats["budget"].to_numpy()
    order = _by_share(stats)
    order = order[(budgets[order] > 0) & (np.isin(order, clusters) if clusters is not None else True)]
    members, budgets = [members[c] for c in order], budgets[order]
    if within == "random":
        draws = [np.random.default_rng([seed, c]).permutation(len(own)) for c, own in zip(order, members)]
        picked = [own[draw[:budget]] for own, draw, budget in zip(members, draws, budgets)]
        return np.concatenate(picked) if picked else np.empty(0, dtype=np.int64)
    x = Rows(x)

    def pick(i, rows):
        return greedy_picks(ClusterKernel(rows, gamma=gamma), budgets[i])

    if device != "cpu":
        from coincide.selection.kernel_gpu import picks_on

        picked = picks_on(device, x, members, budgets, gamma=gamma)
    else:
        picked = map_clusters(pick, x, members, "picks")
    picked = [own[places] for own, places in zip(members, picked)]
    return np.concatenate(picked) if picked else np.empty(0, dtype=np.int64)


def rank_picks(indices, labels, stats):
    """Put the picks of several groups of clusters in the order that `pick_members` gives for all: (B,) int64."""
    place = np.empty(len(stats), np.int64)
    place[_by_share(stats)] = np.arange(len(stats))
    return indices[np.argsort(place[labels[indices]], kind="stable")]


def cluster_group(labels, group, groups):
    """Clusters of one of several groups of about the same work, for a job of its own.

    Args:
        labels: (n,) cluster of each row.
        group: which group, in 0..groups-1.
        groups: number of groups; together they hold every cluster once.

    Returns:
        array of clusters, ascending.
    """
    work = np.cumsum(np.bincount(labels).astype(np.float64) ** 2)  # pairs of members
    ends = np.searchsorted(work, work[-1] * np.arange(1, groups) / groups)
    return np.split(np.arange(len(work)), ends)[group]


def _by_share(stats):
    return np.argsort(-stats["share"].to_numpy(), kind="stable")
