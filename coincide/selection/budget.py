"""Scores of clusters, their shares and their budgets (paper section 3.3)."""

from __future__ import annotations

import math
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


def allocate(scores: ArrayLike, sizes: ArrayLike, budget: int, *, temperature: float = 0.1) -> NDArray[np.int64]:
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

    Returns:
        (K,) int64; sums to min(budget, sizes.sum()), never above `sizes`.

    Raises:
        ValueError: negative budget or sizes, mismatched shapes, non-finite score, or temperature <= 0.

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
    budgets = np.zeros(len(scores), dtype=np.int64)
    remaining = min(int(budget), int(sizes.sum()))
    while remaining > 0:
        not_full = np.flatnonzero(budgets < sizes)
        order = not_full[np.argsort(-logits[not_full], kind="stable")]
        for i, cluster in enumerate(order):
            # Softmax over this and all later clusters, relative to the weight of this cluster: the largest
            # share can be e¹⁰⁰ times the next, and equal shares stay exactly equal.
            share = 1 / np.exp(logits[order[i:]] - logits[cluster]).sum()
            increment = min(round(remaining * share), int(sizes[cluster] - budgets[cluster]))
            budgets[cluster] += increment
            remaining -= increment
    return budgets


def _logits(scores: ArrayLike, temperature: float) -> NDArray[np.float64]:
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0; got {temperature}")
    scores = np.asarray(scores, dtype=np.float64)
    return np.where(np.isnan(scores), -np.inf, scores / temperature)
