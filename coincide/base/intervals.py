"""The interval of a mean over replicates."""

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 9999


def interval(values: ArrayLike, *, seed: int = 0) -> tuple[float, float, float]:
    """Mean of values with its 95% percentile bootstrap interval; NaN values are ignored.

    Returns:
        (mean, low, high); low and high are NaN if there are fewer than three values.
    """
    from scipy import stats

    array = np.asarray(values, np.float64)
    finite = array[np.isfinite(array)]
    if len(finite) < 3:
        return (finite.mean() if len(finite) else np.nan), np.nan, np.nan
    if np.ptp(finite) == 0:
        return finite[0], finite[0], finite[0]
    bounds = stats.bootstrap(
        (finite,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    return finite.mean(), bounds.low, bounds.high
