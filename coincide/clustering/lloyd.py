"""Exact Lloyd iterations on the unit sphere, by low-precision screening and pruning.

Plain Lloyd multiplies every row with every centroid in float32 at every iteration. Here most of
that is spared and the labels stay those of the plain way:

- Screening. Products of int8 roundings, summed exactly in int32, cost a quarter of float32 ones on
  processors with AVX-512 VNNI. A bound on what rounding cut off says which centroids can be a row's
  best; where more than one can, they are compared by float64 dot products (`compiled.decide`).
- Pruning (Hamerly 2010, carried to dot products). A row keeps a lower bound of its own centroid's
  score and an upper bound of all others'. Centroids that moved loosen them by how far they moved.
  A row whose bounds still stand apart is not looked at; a row whose own centroid still beats all
  that did not move is compared with those that did.
- Sums are integers: exact in any order, so that rows that change cluster are added and taken, and
  neither threads nor blocks change a digit.
"""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from coincide.base import numba_loops as compiled

READ = 4096  # rows read at once
PRODUCTS = 2**23  # products held at once
MARGIN = 1e-5  # of float32 bounds, far above their rounding
FEW = 0.7  # share of centroids below which it pays to compare with the moved ones alone


class Lloyd:
    """State of spherical Lloyd iterations.

    Args:
        rows: `Rows` of n rows of d numbers; scaled to unit norm on the way.
        centroids: (K, d) float32 unit rows to begin with.
        keep: hold the int8 rows in memory (n·d bytes) instead of making them anew at each iteration.
        int8: screen in int8 or in float32; None for what is faster here. Labels do not depend on it.

    Attributes:
        centroids: (K, d) float32.
        labels: (n,) int32; -1 for a zero row.
        sizes: (K,) int64.
        work: products made in the last `assign`, as a share of n·K.
    """

    def __init__(self, rows, centroids, *, keep=False, int8=None):
        n, d = rows.shape
        k = len(centroids)
        self.rows, self.centroids = rows, np.ascontiguousarray(centroids, np.float32).copy()
        self.int8 = int8_is_faster(d, k) if int8 is None else int8
        self.labels = np.full(n, -1, np.int32)
        self.sizes = np.zeros(k, np.int64)
        self._centre = self.centroids.mean(axis=0, dtype=np.float64).astype(np.float32)
        self._inverse, self._known = np.empty(n, np.float32), False
        self._screen = Screen(n, d, self._centre, self.int8)
        self._kept = np.empty((n, d), np.int8) if keep and self.int8 else None
        self._of_centroids = Screen(k, d, self._centre, self.int8)
        self._screened = np.empty((k, d), self._screen.dtype)
        self._sums, self._lengths = np.zeros((k, d), np.int64), np.zeros(k)
        # bounds of scores at the last comparison, and how far others may have risen since
        self._own, self._others = np.full(n, -np.inf, np.float32), np.full(n, np.inf, np.float32)
        self._rise, self._hopeful = np.zeros(n, np.float32), np.zeros(n, bool)
        self._moved, self._touched = np.arange(k), np.zeros(k, bool)
        self.work = 1.0

    def assign(self, progress=None):
        """Give every row the centroid with the largest dot product; ties: lowest index.

        Returns:
            number of rows whose label changed.

        Raises:
            ValueError: NaN or infinity among the rows.
        """
        k, moved, changed, products = len(self.centroids), self._moved, 0, 0
        self._screened[moved] = self._of_centroids.fill(self.centroids, moved, np.ones(k, np.float32), moved)
        every = self._columns(np.arange(k))
        some = every if len(moved) > FEW * k else self._columns(moved)
        for x, where, rows in self.rows.batches(np.flatnonzero(self._own <= self._others + self._rise), READ):
            x, before = compiled.bits(x), self.labels[rows]
            if not self._known:
                self._measure(x, where, rows)
            self._score(x, where, rows)
            apart = self._own[rows] > self._others[rows] + self._rise[rows]
            beats = ~apart & (some is not every) & (self._own[rows] > self._others[rows] + MARGIN)
            products += self._compare(x, where, rows, np.flatnonzero(beats), some, True)
            products += self._compare(x, where, rows, np.flatnonzero(~apart & ~beats), every, False)
            self._rise[rows[~apart]] = 0
            changed += self._move(x, where, rows, before)
            if progress is not None:
                progress.update(len(rows))
        self._others += self._rise
        self._rise[:], self._hopeful[:] = 0, False
        self._known, self._moved = True, moved[:0]
        self.work = products / (len(self.rows) * k)
        return changed

    def update(self):
        """Move the centroids of clusters whose members changed to their normalised sums.

        Returns:
            the objective: mean similarity of the rows with the new centroids.
        """
        which = np.flatnonzero(self._touched & (self.sizes > 0))
        old = self.centroids[which]
        compiled.centroids_of(self._sums, which, self.centroids, self._lengths)
        self._lengths[self.sizes == 0] = 0
        self._touched[:] = False
        self._loosen(which, self.centroids[which] - old)
        return float(self._lengths.sum() / len(self.rows))

    def replace(self, which, centroids):
        """Put centroids in place of others: (m,) indices, (m, d) float32 unit rows."""
        old = self.centroids[which]
        self.centroids[which] = centroids
        self._loosen(which, centroids - old)

    def similarity(self):
        """(n,) float32 cosine of each row with its centroid."""
        result = np.empty(len(self.rows), np.float32)
        for x, where, rows in self.rows.batches(np.arange(len(self.rows)), READ):
            out = np.empty(len(rows), np.float32)
            compiled.similarities(compiled.bits(x), where, self._inverse, rows, self.centroids, self.labels, out)
            result[rows] = out
        return result

    def _measure(self, x, where, rows):
        compiled.inverse_norms(x, where, rows, self._inverse)
        bad = np.isnan(self._inverse[rows])
        if bad.any():
            raise ValueError(
                f"x has {np.count_nonzero(bad)} rows with NaN or infinity among those up to row {rows[-1]}, "
                f"the first is row {rows[np.argmax(bad)]}"
            )
        if self._kept is not None:
            self._kept[rows] = self._screen.fill(x, where, self._inverse, rows)

    def _score(self, x, where, rows):
        """A row's own score by one dot product, where that may spare it the comparison with all centroids."""
        which = np.flatnonzero(self._hopeful[rows])
        out = np.empty(len(which), np.float32)
        rows = rows[which]
        compiled.similarities(x, where[which], self._inverse, rows, self.centroids, self.labels, out)
        self._own[rows] = out - self._screen.offset[rows] - MARGIN

    def _columns(self, columns):
        return columns, self._screened[columns], *self._of_centroids.of_columns(columns)

    def _compare(self, x, where, rows, which, columns, known):
        """Compare the rows at `which` with centroids; returns the number of products."""
        numbers, matrix, *bounds = columns
        step = int(np.clip(PRODUCTS // max(len(numbers), 1), 256, READ))
        for first in range(0, len(which), step):
            part = which[first : first + step]
            compiled.decide(
                multiply(self._rounded(x, where[part], rows[part]), matrix), numbers, x, where[part],
                self._inverse, rows[part], self.centroids, *self._screen.arrays, *bounds,
                self.labels, self._own, self._others, known,
            )  # fmt: skip
        return len(which) * len(numbers)

    def _rounded(self, x, where, rows):
        if self._kept is None:
            return self._screen.fill(x, where, self._inverse, rows)
        first, last = rows[0], rows[-1] + 1
        return self._kept[first:last] if last - first == len(rows) else self._kept[rows]

    def _move(self, x, where, rows, before):
        after = self.labels[rows]
        moved = np.flatnonzero(before != after)
        moved = moved[np.argsort(after[moved], kind="stable")]  # a cluster's sum stays in the cache
        add, take = after[moved], before[moved]
        chunk = max(64, min(8192, -(-self._sums.shape[1] // compiled.threads())))
        compiled.add_rows(x, where[moved], self._inverse, rows[moved], add, take, self._sums, chunk)
        left = take[take >= 0]
        self.sizes += np.bincount(add, minlength=len(self.sizes)) - np.bincount(left, minlength=len(self.sizes))
        self._touched[add], self._touched[left] = True, True
        return len(moved)

    def _loosen(self, which, step):
        """Widen the bounds by how far centroids moved."""
        far = (step != 0).any(axis=1)
        which, step = which[far], step[far].astype(np.float64)
        self._moved = np.union1d(self._moved, which)
        if not self._known or not len(which):
            return
        # x·step = (x-µ)·step + µ·step, at most |x-µ||step| away from the last
        k, labels, spread = len(self.centroids), self.labels, self._screen.spread
        along, length = np.zeros(k, np.float32), np.zeros(k, np.float32)
        along[which] = step @ self._centre
        length[which] = np.sqrt((step**2).sum(axis=1)) * (1 + MARGIN)
        second, first = np.argsort(length)[-2:] if k > 1 else (0, 0)
        furthest = np.where(labels == first, length[second], length[first])
        self._rise += (max(along.max(), 0) + MARGIN) + furthest * spread
        self._hopeful |= (length[labels] > 0) & (self._own + along[labels] + length[labels] * spread > self._others)
        self._own += along[labels] - MARGIN - length[labels] * spread


class Screen:
    """Rows rounded for screening, less a centre, with the numbers that bound their error."""

    def __init__(self, n, d, centre, int8):
        self.centre, self.int8, self.dtype = centre, int8, np.int8 if int8 else np.float32
        self.scale, self.rest = np.ones(n, np.float32), np.zeros(n, np.float32)
        self.spread, self.offset = np.zeros(n, np.float32), np.zeros(n)
        self.rounding = np.float32(d * 2.0**-24)  # of a float32 sum of d products, relative to the norms

    def fill(self, x, where, inverse, rows):
        """(m, d) rounded rows; their bounds go to the places `rows`."""
        out = np.empty((len(rows), x.shape[1]), self.dtype)
        if self.int8:
            compiled.quantise(x, where, inverse, rows, self.centre, out, *self.arrays)
        else:
            compiled.centre_rows(x, where, inverse, rows, self.centre, out, self.spread, self.offset)
            self.rest[rows] = self.spread[rows] * self.rounding
        return out

    @property
    def arrays(self):
        """scale, rest, spread, offset."""
        return self.scale, self.rest, self.spread, self.offset

    def of_columns(self, columns):
        """scale, rest, spread, along (centre · centroid) of these centroids, float32."""
        along = self.offset[columns] + float(self.centre.astype(np.float64) @ self.centre)
        return self.scale[columns], self.rest[columns], self.spread[columns], along.astype(np.float32)


def multiply(rows, columns):
    """(m, k) products of (m, d) rows with (k, d) rows: int32 from int8, exact; float32 from float32."""
    if rows.dtype == np.float32:
        return _multiply_float32(rows, columns)
    if rows.shape[1] == 1:  # torch takes the strides of one column for those of one row, and reads past its end
        return rows.astype(np.int32) * columns.T
    import torch

    return torch._int_mm(torch.from_numpy(rows), torch.from_numpy(columns).T).numpy()


def _multiply_float32(rows, columns):
    threads = compiled.threads()
    out = np.empty((len(rows), len(columns)), np.float32)
    starts = range(0, len(rows), step := -(-len(rows) // threads))
    with compiled.one_blas_thread(), ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda s: np.matmul(rows[s : s + step], columns.T, out=out[s : s + step]), starts))
    return out


def int8_is_faster(d, k):
    """Whether int8 products are faster than float32 ones on this processor, by trying both once."""
    k = min(k, 1024)
    seconds = []
    for dtype in (np.int8, np.float32):
        rows, columns = np.ones((512, d), dtype), np.ones((k, d), dtype)
        multiply(rows, columns)
        start = time.perf_counter()
        multiply(rows, columns)
        seconds.append(time.perf_counter() - start)
    return seconds[0] < seconds[1]
