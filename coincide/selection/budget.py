"""Shares of clusters and their budgets (paper section 3.3; DESIGN steps 5 and 6)."""

import math
from fractions import Fraction

import numpy as np


def total_budget(fraction, n):
    """floor(fraction · n), exact in the decimal digits of `fraction` (0.29 of 100 is 29, not 28)."""
    return math.floor(Fraction(str(fraction)) * n)


def shares(scores, *, temperature=0.1):
    """Softmax of scores/τ over the clusters.

    Args:
        scores: (K,) transferability divided by density; NaN (empty cluster) gets no share.
        temperature: τ > 0.

    Returns:
        (K,) float64 that sums to 1.
    """
    logits = _logits(scores, temperature)
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def allocate(scores, sizes, budget, *, temperature=0.1):
    """Divide a budget of samples among clusters by the softmax of their scores.

    The clusters are walked from the largest share to the smallest (ties: lowest index). Cluster i
    gets round-half-to-even(R · p_i), R being what is left of the budget and p_i the softmax over
    the clusters not yet walked; a cluster smaller than that gives all its members, and what it
    could not give stays in R for the next ones. Where the published walk would end with something
    left (the last clusters were too small), it is walked again over the clusters that have room,
    so that the budget is always met.

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
        raise ValueError(f"scores {scores.shape} and sizes {sizes.shape} must be vectors of one length")
    if budget < 0 or (sizes < 0).any():
        raise ValueError("budget and sizes must not be negative")
    if not np.isfinite(scores[sizes > 0]).all():
        raise ValueError(f"score of cluster {np.flatnonzero(~np.isfinite(scores) & (sizes > 0))[0]} is NaN or infinite")
    logits = _logits(np.where(sizes > 0, scores, np.nan), temperature)
    given = np.zeros(len(scores), dtype=np.int64)
    left = min(int(budget), int(sizes.sum()))
    while left > 0:
        open_clusters = np.flatnonzero(given < sizes)
        order = open_clusters[np.argsort(-logits[open_clusters], kind="stable")]
        for i, cluster in enumerate(order):
            # The softmax over this cluster and all after it, relative to its own weight: the
            # largest share can be e¹⁰⁰ times the next, and equal ones stay exactly equal.
            share = 1 / np.exp(logits[order[i:]] - logits[cluster]).sum()
            amount = min(round(left * share), int(sizes[cluster] - given[cluster]))
            given[cluster] += amount
            left -= amount
    return given


def _logits(scores, temperature):
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0; got {temperature}")
    scores = np.asarray(scores, dtype=np.float64)
    return np.where(np.isnan(scores), -np.inf, scores / temperature)
