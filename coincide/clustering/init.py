"""First centroids of k-means: rows that lie far from each other, then moved to where they serve best, on a sample."""

import logging

import numpy as np

from coincide.base import numba_loops as compiled
from coincide.base.rows import Rows, unit_rows
from coincide.clustering.lloyd import READ, Lloyd, Screen, multiply

log = logging.getLogger(__name__)

SAMPLE_PER_CLUSTER = 16  # rows that the first centroids are chosen on, of a quarter of all at most
SAMPLE_BYTES = 2**30  # of their numbers in float16, at most
GROWTH = 0.25  # rows drawn in a round, as a share of those that stand
MOVES = 32  # rounds of moving centroids, at most
MOVED = 0.1  # share of centroids moved in a round
LOOKED_BACK, WORTH = 4, 8e-4  # moving ends when so many rounds gained less than so much similarity a cluster each


def first_centroids(rows, k, seed):
    """Centroids to begin with: (k, d) float32 unit rows.

    On a sample of the rows: k are drawn by k-means++ in rounds, then, after each of a few Lloyd
    iterations, the tenth of the centroids that is missed least is put to rows that are served badly,
    drawn as k-means++ draws, as long as that gains enough. The best state seen is kept. Costs a few
    iterations over all rows.
    Distances come from exact integer products, so that neither threads nor blocks change a draw.

    Args:
        rows: `Rows`.
        k: number of clusters.
        seed: of the random numbers.

    Source: Arthur and Vassilvitskii (2007); Bahmani et al. (2012) for drawing in rounds; Fritzke
    (2020), "The k-means algorithm with breathing", for moving centroids by utility and error.
    """
    random = np.random.default_rng(seed)
    n, d = rows.shape
    size = min(n, max(2 * k, min(SAMPLE_PER_CLUSTER * k, SAMPLE_BYTES // (2 * d), n // 4)))
    sample = Rows(rows.take(np.sort(random.choice(n, size=size, replace=False))))
    nearness = _Nearness(sample)
    drawn = draw_rows(nearness, k, random)
    state = Lloyd(sample, unit_rows(sample.x[drawn].astype(np.float32)), keep=True)
    best, reached, worth = state.centroids, [], LOOKED_BACK * WORTH * k / size
    while True:
        state.assign()
        reached.append(state.update())
        if reached[-1] == max(reached):
            best = state.centroids.copy()
        log.debug("k-means: first centroids, mean similarity %.7f on the sample", reached[-1])
        if len(reached) > MOVES or max(reached) < max(reached[:-LOOKED_BACK], default=-1) + worth:
            return best
        _move(state, nearness, random)


def draw_rows(nearness, k, random):
    """Positions of k rows by k-means++, a quarter as many as stand already in each round: (k,) int64, ascending.

    A round draws without replacement, by exponential keys. Zero rows and copies of drawn rows come
    only where nothing else is left.
    """
    # cosine with the nearest drawn row, no less than it is
    highest = np.where(nearness.inverse == 0, np.inf, -np.inf)
    size = len(highest)
    drawn = [int(np.argmax((nearness.inverse > 0) * random.random(size)))]
    new = np.array(drawn)
    while len(drawn) < k:
        nearness.raise_to(highest, new)
        highest[new] = 1
        count = min(k - len(drawn), max(1, int(GROWTH * len(drawn))))
        new = _draw(np.maximum(1 - highest, 0), count, random)
        if not len(new):
            new = np.setdiff1d(np.arange(size), drawn)[: k - len(drawn)]
        drawn += new.tolist()
    return np.sort(drawn)


def _draw(weights, count, random):
    """Up to `count` positions, without replacement, with probability proportional to weights above 0."""
    keys = weights / random.exponential(size=len(weights))
    first = np.argsort(-keys, kind="stable")[:count]
    return first[keys[first] > 0]


def _move(state, nearness, random):
    """Put the centroids that are missed least to rows that are served badly."""
    state.assign()
    k, labels = len(state.centroids), state.labels
    own, second = nearness.two_best(state.centroids, labels)
    missed = np.bincount(labels[labels >= 0], (own - second)[labels >= 0], minlength=k)
    leaving = np.argsort(missed, kind="stable")[: int(MOVED * k)]
    error = np.where((labels < 0) | np.isin(labels, leaving), 0, np.maximum(1 - own, 0))
    rows = _draw(error, len(leaving), random)
    state.replace(leaving[: len(rows)], unit_rows(state.rows.x[rows].astype(np.float32)))


class _Nearness:
    """Cosines of a sample's rows with centroids, from exact products of their int8 roundings."""

    def __init__(self, sample):
        n, d = sample.shape
        self.x, self.every = compiled.bits(np.ascontiguousarray(sample.x)), np.arange(n)
        self.inverse = np.empty(n, np.float32)
        compiled.inverse_norms(self.x, self.every, self.every, self.inverse)
        self.screen = Screen(n, d, np.zeros(d, np.float32), True)
        self.rounded = self.screen.fill(self.x, self.every, self.inverse, self.every)

    def raise_to(self, highest, drawn):
        """Raise `highest` to an upper bound of each row's cosine with the rows at `drawn`."""
        bounds = self.screen.of_columns(drawn)
        for part, products in self._products(self.rounded[drawn]):
            compiled.nearest(products, part, *self.screen.arrays, *bounds, highest)

    def two_best(self, centroids, labels):
        """(n,) cosine with the own centroid and with the best other, both rounded."""
        k, d = centroids.shape
        screen = Screen(k, d, self.screen.centre, True)
        rounded = screen.fill(centroids, np.arange(k), np.ones(k, np.float32), np.arange(k))
        own, second = np.zeros(len(labels), np.float32), np.zeros(len(labels), np.float32)
        for part, products in self._products(rounded):
            compiled.two_best(products, part, self.screen.scale, screen.scale, labels, own, second)
        return own, second

    def _products(self, rounded):
        for start in range(0, len(self.every), READ):
            yield self.every[start : start + READ], multiply(self.rounded[start : start + READ], rounded)
