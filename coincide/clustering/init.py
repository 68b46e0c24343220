"""First centroids of k-means: random rows, or rows that are far from each other (k-means++)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from coincide.base.numba_support import bits
from coincide.base.rows import Rows, unit_rows
from coincide.clustering import loops
from coincide.clustering.lloyd import ROWS_PER_BATCH, Multiplier, Screen
from coincide.clustering.loops import RowBatch

SAMPLE_PER_CLUSTER = 16  # rows per cluster of the sample that k-means++ draws from; at most a quarter of all rows
SAMPLE_BYTES = 2**30  # size of the sample in float16, at most
GROWTH = 0.25  # rows drawn in a round of k-means++, as a share of the rows drawn before


def random_rows(rows: Rows, k: int, seed: int) -> np.ndarray:
    """Draw k different rows uniformly at random, as faiss and the published code do. Zero rows are not drawn.

    The first centroids decide how many clusters a dense and a sparse region get, and budgets go by cluster: random
    rows divide the clusters among regions in proportion to their samples, while k-means++ favours outliers.

    Args:
        rows: n rows of d numbers.
        k: number of clusters.
        seed: seed of the random numbers.

    Returns:
        (k, d) float32 unit rows; zero rows only if fewer than k rows are not zero.

    Source: Lee, Li, Hwang (EMNLP 2024), published code: faiss.Kmeans without initial centroids.
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    centroids, found = np.zeros((k, rows.shape[1]), np.float32), 0
    for start in range(0, len(order), k):
        found += _fill_unit_rows(rows.take(np.sort(order[start : start + k])), centroids[found:])
        if found == k:
            break
    return centroids


def _fill_unit_rows(x, out):
    """Write the rows of x that are not zero to `out` with unit norm, as many as it takes; return how many it took."""
    positions, inverse_norms = np.arange(len(x)), np.empty(len(x), np.float32)
    batch = RowBatch(bits(np.ascontiguousarray(x)), positions, positions, inverse_norms)
    loops.compute_inverse_norms(batch)
    batch = batch.take(np.flatnonzero(inverse_norms)[: len(out)])
    origin = np.zeros(x.shape[1], np.float32)
    Screen(len(x), x.shape[1], origin, int8=False).fill(batch, out[: len(batch.rows)])
    return len(batch.rows)


def kmeans_plus_plus(rows: Rows, k: int, seed: int) -> np.ndarray:
    """Draw k rows of a sample by k-means++: each with a probability that grows with its distance from those drawn.

    Distances come from exact integer products, so that neither threads nor batches change a draw.

    Args, returns: as `random_rows`.

    Source: Arthur and Vassilvitskii (2007), "k-means++"; Bahmani et al. (2012), "Scalable k-means++", for drawing
    in rounds.
    """
    random = np.random.default_rng(seed)
    size = _sample_size(len(rows), rows.shape[1], k)
    sample = Rows(rows.take(np.sort(random.choice(len(rows), size=size, replace=False))))
    return unit_rows(sample.x[draw_rows(CosineScreen(sample), k, random)].astype(np.float32))


INITS = {"random": random_rows, "k-means++": kmeans_plus_plus}


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
        self._multiplier = Multiplier()

    def raise_bounds(self, upper_bounds: np.ndarray, drawn: np.ndarray) -> None:
        """Raise upper bounds of each row's largest cosine so that they cover the rows at `drawn`, too."""
        candidates = self._screen.candidates(drawn)
        for rows, products in self._products(self._rounded[drawn]):
            loops.raise_cosine_bounds(products, rows, self._screen.bounds, candidates, upper_bounds)

    def _products(self, rounded: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield positions of rows, and their products with (k, d) int8 rows, which are valid until the next."""
        for start in range(0, len(self._rounded), ROWS_PER_BATCH):
            block = self._rounded[start : start + ROWS_PER_BATCH]
            yield np.arange(start, start + len(block)), self._multiplier.multiply(block, rounded)
