"""The whole selection, from clusters to a coreset (paper section 3), and the tables of its steps."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from coincide.base.clustered_rows import ClusteredRows
from coincide.base.rows import RowData
from coincide.selection.budget import allocate, budget_logits, shares, total_budget
from coincide.selection.density import cluster_densities
from coincide.selection.picks import pick_members
from coincide.selection.transferability import transferability


@dataclass(frozen=True)
class Coreset:
    """Selected rows and the statistics of the clusters that led to them.

    Attributes:
        indices: (B,) int64 rows of x, cluster by cluster from the largest share to the smallest,
            in the order picked.
        cluster_stats: one row per cluster: cluster, size, transferability, density, share, budget.
    """

    indices: NDArray[np.int64]
    cluster_stats: pd.DataFrame


def select(
    x: RowData,
    labels: ArrayLike,
    centroids: ArrayLike,
    *,
    fraction: float,
    temperature: float = 0.1,
    gamma: float = 1.0,
    blocks: NDArray[np.bool_] | Sequence[slice] | None = None,
    exclude_above: float = 0.9,
    device: str = "cpu",
) -> Coreset:
    """Select a fraction of the samples by transferability and density of their clusters.

    Args:
        x: (n, d) float16 or float32 activations, an iterable of row blocks, or activations on disk
            (`coincide.base.activation_store.Activations`), which are read a few clusters at a time.
        labels: (n,) integer cluster of each row, in 0..K-1.
        centroids: (K, d) centroids.
        fraction: share of the samples to keep, in (0, 1]; floor(fraction · n) are kept.
        temperature: τ of the softmax over clusters.
        gamma: kernel width γ of density and picks.
        blocks: columns for transferability (see `transferability`).
        exclude_above: cosine above which centroids count as near-copies.
        device: torch device of transferability, density and picks; see `density`.

    Returns:
        Coreset.

    Raises:
        ValueError: fraction outside (0, 1]; wrong shapes or labels; NaN or infinity in x.

    Source: Lee, Li, Hwang (EMNLP 2024), section 3.

    >>> import numpy as np
    >>> x = np.eye(4, dtype=np.float32)
    >>> select(x, [0, 0, 1, 1], np.array([[1.0, 1, 0, 0], [0, 0, 1, 1]]), fraction=0.5).indices.tolist()
    [0, 2]
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1]; got {fraction}")
    clustered = ClusteredRows(x, labels, len(np.asarray(centroids)))
    stats = shares_table(
        clustered.sizes,
        transferability(centroids, blocks=blocks, exclude_above=exclude_above, device=device),
        cluster_densities(clustered, gamma=gamma, device=device),
        temperature=temperature,
    )
    stats["budget"] = budget_table(stats, fraction)["budget"]
    return Coreset(pick_members(clustered, stats, gamma=gamma, device=device), stats)


def shares_table(
    sizes: ArrayLike,
    transferabilities: NDArray[np.float64],
    densities: NDArray[np.float64],
    *,
    temperature: float = 0.1,
    weigh_density: bool = True,
    budget: str = "published",
    premise_weight: float = 1.0,
) -> pd.DataFrame:
    """Table of cluster, size, transferability, density, logit and share, one row per cluster.

    Args:
        sizes, transferabilities, densities: (K,) each.
        temperature: τ of the softmax, for budget "published".
        weigh_density: False ignores density: it is 1 for every cluster, in the table as well.
        budget: kind of budget, see `coincide.selection.budget.budget_logits`.
        premise_weight: weight of the scores, for budget "premise".
    """
    stats = pd.DataFrame(
        {
            "cluster": np.arange(len(densities), dtype=np.int32),
            "size": np.asarray(sizes, dtype=np.int64),
            "transferability": transferabilities,
            "density": densities if weigh_density else np.ones_like(densities),
        }
    )
    logits = budget_logits(budget, stats, temperature=temperature, premise_weight=premise_weight)
    return stats.assign(logit=logits, share=shares(logits, temperature=1.0))


def budget_table(
    stats: pd.DataFrame,
    fraction: float,
    *,
    total: int | None = None,
    kept: NDArray[np.int64] | None = None,
    excluded: NDArray[np.int64] | None = None,
) -> pd.DataFrame:
    """Table of cluster and budget for a fraction, from a table of `shares_table`.

    Args:
        stats: table of `shares_table`.
        fraction: share of the samples to keep.
        total: number of samples to keep; None: the fraction of all.
        kept: (K,) number of members of each cluster that the coreset must contain; None: 0.
        excluded: (K,) number of members of each cluster that it must not contain; None: 0.
    """
    sizes = stats["size"].to_numpy()
    available = sizes if excluded is None else sizes - excluded
    total = total_budget(fraction, sizes.sum()) if total is None else total
    budgets = allocate(stats["logit"], available, total, temperature=1.0, least=kept)
    return pd.DataFrame({"cluster": stats["cluster"], "budget": budgets})
