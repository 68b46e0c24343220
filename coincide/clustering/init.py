"""First centroids of k-means: rows far from each other, improved on a sample."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np

from coincide.base.numba_support import bits
from coincide.base.rows import Rows, unit_rows
from coincide.clustering import loops
from coincide.clustering.lloyd import ROWS_PER_BATCH, Lloyd, Screen, multiply
from coincide.clustering.loops import RowBatch

log = logging.getLogger(__name__)

SAMPLE_PER_CLUSTER = 16  # rows of the sample per cluster; the sample is at most a quarter of all rows
SAMPLE_BYTES = 2**30  # size of the sample in float16, at most
GROWTH = 0.25  # rows drawn in a round of k-means++, as a share of the rows drawn before
MAX_MOVES = 32  # rounds of moving centroids
MOVED_SHARE = 0.1  # share of the centroids that a round moves
PATIENCE = 4  # rounds that must together gain enough; otherwise moving ends
WORTHWHILE_GAIN = 8e-4  # similarity that a round must gain per cluster, summed over the rows of the sample


def first_centroids(rows: Rows, k: int, seed: int) -> np.ndarray:
    """Choose initial centroids.

    On a sample of the rows, k rows are drawn by k-means++ in rounds. Then, after each of a few Lloyd
    iterations, the tenth of the centroids with the lowest utility is moved to rows that are far from their
    centroids, drawn with the probabilities of k-means++, until this gains too little. The best centroids on
    the way are kept. The cost is that of a few iterations over all rows.

    Distances come from exact integer products, so that neither threads nor batches change a draw.

    Args:
        rows: n rows of d numbers.
        k: number of clusters.
        seed: seed of the random numbers.

    Returns:
        (k, d) float32 unit rows.

    Source: Arthur and Vassilvitskii (2007), "k-means++"; Bahmani et al. (2012), "Scalable k-means++", for drawing
    in rounds; Fritzke (2020), "The k-means algorithm with breathing", for moving centroids by utility and error.
    """
    random = np.random.default_rng(seed)
    n, d = rows.shape
    size = _sample_size(n, d, k)
    sample = Rows(rows.take(np.sort(random.choice(n, size=size, replace=False))))
    screen = CosineScreen(sample)
    drawn = draw_rows(screen, k, random)
    state = Lloyd(sample, unit_rows(sample.x[drawn].astype(np.float32)), keep=True)
    best, objectives, worthwhile = state.centroids, [], PATIENCE * WORTHWHILE_GAIN * k / size
    while True:
        state.assign()
        objectives.append(state.update())
        if objectives[-1] == max(objectives):
            best = state.centroids.copy()
        log.debug("k-means: first centroids, mean similarity %.7f on the sample", objectives[-1])
        best_before = max(objectives[:-PATIENCE], default=-1)
        stalled = max(objectives) < best_before + worthwhile
        if stalled or len(objectives) > MAX_MOVES:
            return best
        _move_centroids(state, screen, random)


def draw_rows(screen: CosineScreen, k: int, random: np.random.Generator) -> np.ndarray:
    """Draw k rows by k-means++, in rounds that each draw a quarter as many rows as were drawn before.

    A round draws without replacement, by exponential keys. Zero rows and copies of drawn rows are drawn only
    when nothing else is left.

    Args:
        screen: of the sample to draw from.
        k: number of rows, at most those of the sample.
        random: random numbers.

    Returns:
        (k,) int64 positions in the sample, ascending.
    """
    size = len(screen.inverse_norms)
    # of each row's cosine with the nearest drawn row; infinite for a zero row, so that it is not drawn
    upper_bounds = np.where(screen.inverse_norms == 0, np.inf, -np.inf)
    first = np.argmax((screen.inverse_norms > 0) * random.random(size))
    drawn, new = [int(first)], np.array([first])
    while len(drawn) < k:
        screen.raise_bounds(upper_bounds, new)
        upper_bounds[new] = 1
        count = min(k - len(drawn), max(1, int(GROWTH * len(drawn))))
        new = _draw(np.maximum(1 - upper_bounds, 0), count, random)
        if not len(new):  # only zero rows and copies of drawn rows are left
            new = np.setdiff1d(np.arange(size), drawn)[: k - len(drawn)]
        drawn += new.tolist()
    return np.sort(drawn)


def _draw(weights, count, random):
    """Draw up to `count` positions without replacement, with probabilities proportional to the positive weights."""
    keys = weights / random.exponential(size=len(weights))
    largest = np.argsort(-keys, kind="stable")[:count]
    return largest[keys[largest] > 0]


def _move_centroids(state, screen, random):
    """Move the centroids with the lowest utility to rows that are far from their centroids.

    The utility of a centroid is the similarity that its members would lose if each had to take the second
    best centroid; the error of a row is 1 minus its cosine with its centroid (Fritzke 2020).
    """
    state.assign()
    k, labels = len(state.centroids), state.labels
    assigned, second = screen.two_best_cosines(state.centroids, labels)
    labelled = labels >= 0
    utility = np.bincount(labels[labelled], (assigned - second)[labelled], minlength=k)
    leaving = np.argsort(utility, kind="stable")[: int(MOVED_SHARE * k)]
    error = np.where(~labelled | np.isin(labels, leaving), 0, np.maximum(1 - assigned, 0))
    targets = _draw(error, len(leaving), random)
    state.replace(leaving[: len(targets)], unit_rows(state.rows.x[targets].astype(np.float32)))


def _sample_size(n, d, k):
    """Number of rows that the first centroids are chosen on."""
    size = min(SAMPLE_PER_CLUSTER * k, SAMPLE_BYTES // (2 * d), n // 4)
    return min(n, max(2 * k, size))


class CosineScreen:
    """Cosines of a sample's rows with centroids, by exact products of their int8 roundings.

    Attributes:
        inverse_norms: (n,) float32, 0 for a zero row.
    """

    def __init__(self, sample: Rows):
        n, d = sample.shape
        rows = np.arange(n)
        self.inverse_norms = np.empty(n, np.float32)
        batch = RowBatch(bits(np.ascontiguousarray(sample.x)), rows, rows, self.inverse_norms)
        loops.compute_inverse_norms(batch)
        self._screen = Screen(n, d, np.zeros(d, np.float32), True)
        self._rounded = self._screen.fill(batch)

    def raise_bounds(self, upper_bounds: np.ndarray, drawn: np.ndarray) -> None:
        """Raise upper bounds of each row's largest cosine so that they cover the rows at `drawn`, too."""
        candidates = self._screen.candidates(drawn)
        for rows, products in self._products(self._rounded[drawn]):
            loops.raise_cosine_bounds(products, rows, self._screen.bounds, candidates, upper_bounds)

    def two_best_cosines(self, centroids: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n,) rounded cosines with the centroid of the row's label, and (n,) with the best other one."""
        k, d = centroids.shape
        clusters = np.arange(k)
        screen = Screen(k, d, self._screen.centre, True)
        rounded = screen.fill(RowBatch(centroids, clusters, clusters, np.ones(k, np.float32)))
        assigned, second = np.zeros(len(labels), np.float32), np.zeros(len(labels), np.float32)
        scales = self._screen.bounds.scale, screen.bounds.scale
        for rows, products in self._products(rounded):
            loops.two_best_cosines(products, rows, *scales, labels, assigned, second)
        return assigned, second

    def _products(self, rounded: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield positions of rows, and their products with (k, d) int8 rows."""
        for start in range(0, len(self._rounded), ROWS_PER_BATCH):
            block = self._rounded[start : start + ROWS_PER_BATCH]
            yield np.arange(start, start + len(block)), multiply(block, rounded)
