"""Other methods than coincide, to compare with."""

import numpy as np

from coincide.budget import total_budget


def random_picks(n, fraction, *, seed):
    """Draw floor(fraction · n) of n samples uniformly without replacement.

    Returns:
        (indices, scores): (B,) int64 rows in the order drawn, and (n,) float64 scores, the draw of
        each row: the smallest are taken.
    """
    scores = np.random.default_rng(seed).random(n)
    return np.argsort(scores, kind="stable")[: total_budget(fraction, n)], scores
