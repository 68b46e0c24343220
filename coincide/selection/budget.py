"""Scores of clusters, their shares and their budgets (paper section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import pandas as pd


def total_budget(fraction: float, n: int) -> int:
    """floor(fraction · n), exact in the decimal digits of `fraction` (0.29 of 100 is 29, not 28)."""
    return math.floor(Fraction(str(fraction)) * n)


def scores_of(stats: pd.DataFrame) -> NDArray[np.float64]:
    """(K,) score of each cluster: transferability / density, columns of a table with one row per cluster."""
    return (stats["transferability"] / stats["density"]).to_numpy()


def budget_logits(
    kind: str, stats: pd.DataFrame, *, temperature: float = 0.1, premise_weight: float = 1.0
) -> NDArray[np.float64]:
    """(K,) logits whose softmax gives the shares of a kind of budget; NaN for an empty cluster.

    Args:
        kind: "published": transferability / density / τ. "premise": the same times `premise_weight`. "even": the same
            for every cluster. "size": the logarithm of the number of members, so that a share is the share of the
            samples.
        stats: table with columns size, transferability and density, one row per cluster.
        temperature: τ, for "published" and "premise".
        premise_weight: see `premise_weight`, for "premise".

    Raises:
        ValueError: temperature <= 0.

    Source: "published": Lee, Li, Hwang (EMNLP 2024), section 3.3; the others are alternatives of this project.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0; got {temperature}")
    sizes = stats["size"].to_numpy(dtype=np.float64)
    if kind == "size":
        return np.log(sizes, out=np.full(len(sizes), np.nan), where=sizes > 0)
    if kind == "even":
        return np.where(sizes > 0, 0.0, np.nan)
    logits = scores_of(stats) / temperature
    return logits if kind == "published" else premise_weight * logits


def premise_weight(result: Mapping[str, float]) -> float:
    """How much the measured premise supports transferability, in 0..1: the weight of the scores in budgets.

    It is the lower end of the 95% interval of the correlation between gain and similarity, and 0 where training on a
    cluster may not even help the cluster itself, or where similar clusters do not gain more than others.

    Args:
        result: `low` and `self_gain_low` of `coincide.study.transfer_check.correlation`.
    """
    if not result["self_gain_low"] > 0:
        return 0.0
    return float(min(max(result["low"], 0.0), 1.0))


def effective_clusters(cluster_shares: ArrayLike) -> float:
    """Effective number of clusters: the exponential of the entropy of the shares, from 1 to K."""
    p = np.asarray(cluster_shares, dtype=np.float64)
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


def spread_text(stats: pd.DataFrame) -> str:
    """One line on how widely the clusters' scores spread, and how unequal that makes their shares.

    The temperature is in absolute units of transferability / density, so its effect depends on this spread.

    Args:
        stats: table of `shares_table`.
    """
    transferability = stats["transferability"]
    low, median, high = np.percentile(scores_of(stats)[stats["size"] > 0], [5, 50, 95])
    even_share = 1 / len(stats)
    starved = stats.loc[stats["share"] < even_share / 10, "size"].sum() / stats["size"].sum()
    return (
        f"Clusters: transferability {transferability.min():.2f} to {transferability.max():.2f}, transferability ÷ "
        f"density {low:.2f}, {median:.2f} and {high:.2f} at the 5th, 50th and 95th percentile. The shares are those of "
        f"{effective_clusters(stats['share']):.0f} equal clusters out of {len(stats)}; {starved:.1%} of the samples "
        "are in clusters with less than a tenth of an even share."
    )


def shares(scores: ArrayLike, *, temperature: float = 0.1) -> NDArray[np.float64]:
    """Softmax of scores/τ over the clusters.

    Args:
        scores: (K,) transferability divided by density; NaN (an empty cluster) has share 0.
        temperature: τ > 0.

    Returns:
        (K,) float64 that sums to 1.

    Raises:
        ValueError: temperature <= 0.

    Source: Lee, Li, Hwang (EMNLP 2024), section 3.3.
    """
    logits = _logits(scores, temperature)
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def allocate(
    scores: ArrayLike, sizes: ArrayLike, budget: int, *, temperature: float = 0.1, least: ArrayLike | None = None
) -> NDArray[np.int64]:
    """Divide a budget of samples among clusters by the softmax of their scores.

    The clusters are visited from the largest share to the smallest (ties: lowest index). Cluster i
    gets round-half-to-even(R · p_i), where R is the remaining budget and p_i the softmax over the
    clusters not yet visited. A cluster that is smaller than its budget gets all its members, and the
    difference remains in R for the next clusters. The published procedure may end with R > 0, where
    the last clusters are too small; here the clusters with members left are then visited again, so
    that the budget is always met.

    Args:
        scores: (K,) transferability divided by density; any value where the size is 0.
        sizes: (K,) integer number of members.
        budget: number of samples to allocate.
        temperature: τ > 0 of the softmax.
        least: (K,) integer smallest budget of each cluster, such as the number of samples to keep; None: 0. If the
            budgets without it are below it somewhere, the walk is repeated: a cluster gets at least this many, and so
            many are set aside for the clusters not yet visited.

    Returns:
        (K,) int64; sums to min(budget, sizes.sum()), never above `sizes` or below `least`.

    Raises:
        ValueError: negative budget or sizes, mismatched shapes, non-finite score, temperature <= 0, or a `least` above
            the sizes or, in sum, the budget.

    Source: Lee, Li, Hwang (EMNLP 2024), section 3.3, and the published code's order and rounding.

    >>> allocate([1.0, 1.0], [10, 10], 5).tolist()
    [2, 3]
    """
    scores, sizes = np.asarray(scores, dtype=np.float64), np.asarray(sizes, dtype=np.int64)
    if scores.shape != sizes.shape or scores.ndim != 1:
        raise ValueError(f"scores {scores.shape} and sizes {sizes.shape} must be vectors of equal length")
    if budget < 0 or (sizes < 0).any():
        raise ValueError("budget and sizes must not be negative")
    if not np.isfinite(scores[sizes > 0]).all():
        raise ValueError(f"score of cluster {np.flatnonzero(~np.isfinite(scores) & (sizes > 0))[0]} is NaN or infinite")
    logits = _logits(np.where(sizes > 0, scores, np.nan), temperature)
    total = min(int(budget), int(sizes.sum()))
    budgets = _walk(logits, sizes, total, np.zeros_like(sizes))
    if least is None:
        return budgets
    least = np.asarray(least, dtype=np.int64)
    if least.shape != sizes.shape or (least < 0).any() or (least > sizes).any() or least.sum() > total:
        raise ValueError(f"least must be in 0..sizes and sum to at most {total}; got a sum of {least.sum()}")
    # what the published walk satisfies by itself changes nothing
    return budgets if (budgets >= least).all() else _walk(logits, sizes, total, least)


def _walk(
    logits: NDArray[np.float64], sizes: NDArray[np.int64], remaining: int, least: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The walk of `allocate`, until `remaining` samples are allocated."""
    budgets, lacking = np.zeros_like(sizes), least.copy()
    set_aside = int(lacking.sum())  # of what remains, for the clusters not yet visited
    while remaining > 0:
        not_full = np.flatnonzero(budgets < sizes)
        order = not_full[np.argsort(-logits[not_full], kind="stable")]
        for i, cluster in enumerate(order):
            # Softmax over this and all later clusters, relative to the weight of this cluster: the largest
            # share can be e¹⁰⁰ times the next, and equal shares stay exactly equal.
            share = 1 / np.exp(logits[order[i:]] - logits[cluster]).sum()
            set_aside -= int(lacking[cluster])
            increment = min(round(remaining * share), int(sizes[cluster] - budgets[cluster]), remaining - set_aside)
            increment = max(increment, int(lacking[cluster]))
            lacking[cluster] = 0
            budgets[cluster] += increment
            remaining -= increment
    return budgets


def _logits(scores: ArrayLike, temperature: float) -> NDArray[np.float64]:
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0; got {temperature}")
    scores = np.asarray(scores, dtype=np.float64)
    return np.where(np.isnan(scores), -np.inf, scores / temperature)
