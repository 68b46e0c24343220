"""Compiled inner loops of the greedy picks; see `coincide.base.numba_support`."""

import numba
import numpy as np

from coincide.base.numba_support import parallel, serial, to_float32


@serial
def greedy_additions(
    kernel: np.ndarray,
    to_cluster: np.ndarray,
    to_picks: np.ndarray,
    free: np.ndarray,
    totals: np.ndarray,
    picks: np.ndarray,
    forced: np.ndarray,
    start: int,
    stop: int,
    tie: float,
) -> None:
    """Fill picks[start:stop]: at each step pick the free member that leaves MMD² smallest.

    Args:
        kernel: (n, n) kernel of the cluster, or (1, n): only the row of the last pick before `start`.
        to_cluster: (n,) mean kernel of each member with the cluster.
        to_picks: (n,) kernel of each member summed over all picks except the last; changed in place.
        free: (n,) whether a member can be picked; changed in place.
        totals: (2,) kernel summed over all pairs of picks, and `to_cluster` summed over the picks; changed in place.
        picks: (m,) int64 positions of the picked members.
        forced: (m,) int64 position of the member that is picked in any case; -1: the best one.
        start, stop: range of `picks` to fill.
        tie: members whose MMD² is within `tie` of the smallest are ties; the first of them is picked.
    """
    n = len(free)
    for i in range(start, stop):
        if i > 0:
            column = kernel[picks[i - 1]] if len(kernel) == n else kernel[0]
            for j in range(n):
                to_picks[j] += column[j]
        size, smallest = i + 1, np.inf
        picks[i] = forced[i]
        for repeat in range(
            2 if forced[i] < 0 else 0
        ):  # first find the smallest value, then the first member within `tie` of it
            for j in range(n):
                if not free[j]:
                    continue
                # MMD² after adding the member, minus the cluster's constant term
                value = (totals[0] + 2 * to_picks[j] + 1.0) / size**2 - 2 * (totals[1] + to_cluster[j]) / size
                if repeat == 0:
                    smallest = min(smallest, value)
                elif value <= smallest + tie:
                    picks[i] = j
                    break
        pick = picks[i]
        free[pick] = False
        totals[0] += 2 * to_picks[pick] + 1.0
        totals[1] += to_cluster[pick]


@parallel
def squared_distances(x: np.ndarray, i: int, out: np.ndarray) -> None:
    """Squared L2 distance of each row of x from row i, in float64."""
    for m in numba.prange(len(x)):
        total = 0.0
        for j in range(x.shape[1]):
            difference = np.float64(to_float32(x[m, j])) - np.float64(to_float32(x[i, j]))
            total += difference * difference
        out[m] = total
