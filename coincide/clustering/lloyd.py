"""Exact Lloyd iterations on the unit sphere, made fast by low-precision screening and pruning.

Plain Lloyd iterations multiply every row with every centroid in float32. Here most of these products
are avoided or cheaper, and the labels are those of the plain iterations:

- Screening. Products of int8 roundings, summed exactly in int32, cost a quarter of float32 products on
  processors with AVX-512 VNNI. The Cauchy-Schwarz inequality bounds what rounding cut off, and with it
  which centroids can be a row's best. If there is more than one, they are compared by float64 dot
  products (`coincide.clustering.loops.assign_rows`).
- Pruning (bounds of Hamerly 2010, "Making k-means even faster", carried from distances to dot products).
  Each row keeps a lower bound of the score of its own centroid and an upper bound of the scores of all
  others. Centroids that move loosen the bounds by as much as they moved, their drift. A row whose
  lower bound is still above its upper bound keeps its label without any product. A row whose own centroid
  still beats all centroids that did not move is compared only with those that did.
- Sums of members are sums of integers, exact in any order: rows that change cluster are added to one sum
  and subtracted from another, and neither the number of threads nor the batch size changes a digit.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

import numpy as np
from numpy.typing import DTypeLike

from coincide.base.numba_support import bits
from coincide.base.progress import Progress
from coincide.base.rows import Rows
from coincide.base.threads import one_blas_thread, threads
from coincide.clustering import loops
from coincide.clustering.loops import Assignment, Candidates, RoundedRows, RowBatch

ROWS_PER_BATCH = 4096  # rows read at once, or more of them if they are narrow
NUMBERS_PER_BATCH = 2**24  # numbers read at once, where that is more rows
PRODUCTS_AT_ONCE = 2**23
MARGIN = 1e-5  # added to float32 bounds, far above their rounding
KEPT_FLOAT32_BYTES = 2 * 2**30  # float32 rows up to this size are kept; larger ones are computed at each iteration
DENSE = 0.7  # share of rows in a range from which it pays to multiply the whole range
EXACT_NUMBERS = 1024  # 1024·127² < 2²⁴: float32 sums of so many products of int8 numbers are exact in any order
FEW_MOVED = 0.7  # share of moved centroids up to which it pays to compare rows with these only


class Lloyd:
    """State of spherical Lloyd iterations.

    Args:
        rows: n rows of d numbers; they are scaled to unit norm as they are read.
        centroids: (K, d) float32 unit rows to start from.
        keep: hold the rounded rows in memory instead of rounding them again at each iteration: n·d bytes in int8;
            float32 rows only up to KEPT_FLOAT32_BYTES.
        int8: screen in int8 or in float32; None selects the faster one on this machine. The labels are the same.

    Attributes:
        centroids: (K, d) float32.
        labels: (n,) int32; -1 for a zero row.
        sizes: (K,) int64 number of members.
        work: products computed in the last `assign`, as a share of n·K.
    """

    def __init__(self, rows: Rows, centroids: np.ndarray, *, keep: bool = False, int8: bool | None = None):
        n, d = rows.shape
        k = len(centroids)
        self.rows = rows
        self._rows_per_batch = max(ROWS_PER_BATCH, NUMBERS_PER_BATCH // d)
        self.centroids = np.ascontiguousarray(centroids, np.float32).copy()
        self.int8 = int8_is_faster(d) if int8 is None else int8
        self.labels = np.full(n, -1, np.int32)
        self.sizes = np.zeros(k, np.int64)
        self.work = 1.0
        self._centre = self.centroids.mean(axis=0, dtype=np.float64).astype(np.float32)
        self._inverse_norms = np.empty(n, np.float32)
        self._norms_known = False  # True after the first assignment
        self._row_screen = Screen(n, d, self._centre, self.int8)
        keep = keep and (self.int8 or 4 * n * d <= KEPT_FLOAT32_BYTES)
        self._rounded_rows = np.empty((n, d), self._row_screen.dtype) if keep else None
        self._centroid_screen = Screen(k, d, self._centre, self.int8)
        self._multiplier = Multiplier()
        self._row_buffer = Buffer()
        self._rounded_centroids = np.empty((k, d), self._centroid_screen.dtype)
        self._sums, self._sum_lengths = np.zeros((k, d), np.int64), np.zeros(k)
        # Bounds of scores, see `Assignment`; the upper bound is as of a row's last comparison, and
        # `_drift` is how much the score of any other centroid can have grown since then.
        self._lower_bound = np.full(n, -np.inf, np.float32)
        self._upper_bound = np.full(n, np.inf, np.float32)
        self._drift = np.zeros(n, np.float32)
        self._rescore = np.zeros(n, bool)  # rows whose lower bound the next assignment computes first
        self._moved = np.arange(k)  # centroids that moved since the last assignment
        self._changed = np.zeros(k, bool)  # clusters whose members changed since the last update

    def assign(self, progress: Progress | None = None) -> int:
        """Assign every row to the centroid with the largest dot product; ties: lowest index.

        Args:
            progress: counts the rows that had to be read.

        Returns:
            number of rows whose label changed.

        Raises:
            ValueError: NaN or infinity among the rows.
        """
        k, moved = len(self.centroids), self._moved
        batch = RowBatch(self.centroids, moved, moved, np.ones(k, np.float32))
        self._rounded_centroids[moved] = self._centroid_screen.fill(batch)
        every_column = self._columns(np.arange(k))
        few_moved = len(moved) <= FEW_MOVED * k
        moved_columns = self._columns(moved) if few_moved else None
        changed = products = 0
        undecided = np.flatnonzero(self._lower_bound <= self._upper_bound + self._drift)
        for x, batch_rows, rows in self.rows.batches(undecided, self._rows_per_batch):
            batch, old_labels = RowBatch(bits(x), batch_rows, rows, self._inverse_norms), self.labels[rows]
            if not self._norms_known:
                self._prepare(batch)
            self._tighten(batch)
            lower, upper, drift = self._lower_bound[rows], self._upper_bound[rows], self._drift[rows]
            decided = lower > upper + drift
            beats_unmoved = lower > upper + MARGIN
            with_moved = ~decided & beats_unmoved & few_moved
            with_all = ~decided & ~with_moved
            products += self._compare(batch.take(np.flatnonzero(with_moved)), moved_columns, partial=True)
            products += self._compare(batch.take(np.flatnonzero(with_all)), every_column, partial=False)
            self._drift[rows[~decided]] = 0
            changed += self._move_rows(batch, old_labels)
            if progress is not None:
                progress.update(len(rows))
        self._upper_bound += self._drift
        self._drift[:] = 0
        self._rescore[:] = False
        self._moved = moved[:0]
        self._norms_known = True
        self.work = products / (len(self.rows) * k)
        return changed

    def update(self) -> float:
        """Move the centroids of clusters whose members changed to the normalised sums of their members.

        Returns:
            the objective: mean similarity of the rows with the new centroids.
        """
        clusters = np.flatnonzero(self._changed & (self.sizes > 0))
        centre_steps, lengths = np.empty(len(clusters)), np.empty(len(clusters))
        loops.normalise_sums(
            self._sums, clusters, self.centroids, self._sum_lengths, self._centre, centre_steps, lengths
        )
        self._sum_lengths[self.sizes == 0] = 0
        self._changed[:] = False
        self._loosen_bounds(clusters, centre_steps, lengths)
        return float(self._sum_lengths.sum() / len(self.rows))

    def replace(self, clusters: np.ndarray, centroids: np.ndarray) -> None:
        """Replace the centroids of (m,) clusters by (m, d) float32 unit rows."""
        steps = centroids.astype(np.float64) - self.centroids[clusters]
        self.centroids[clusters] = centroids
        self._loosen_bounds(clusters, steps @ self._centre, np.linalg.norm(steps, axis=1))

    def similarity(self) -> np.ndarray:
        """(n,) float32 cosine of each row with its centroid."""
        result = np.empty(len(self.rows), np.float32)
        for x, batch_rows, rows in self.rows.batches(np.arange(len(self.rows)), ROWS_PER_BATCH):
            result[rows] = self._assigned_cosines(RowBatch(bits(x), batch_rows, rows, self._inverse_norms))
        return result

    def _assigned_cosines(self, batch):
        cosines = np.empty(len(batch.rows), np.float32)
        loops.assigned_cosines(batch, self.centroids, self.labels, cosines)
        return cosines

    def _prepare(self, batch):
        """Compute the norms of rows that are read for the first time, and their int8 rows if these are kept."""
        loops.compute_inverse_norms(batch)
        bad = np.isnan(self._inverse_norms[batch.rows])
        if bad.any():
            raise ValueError(
                f"x has {np.count_nonzero(bad)} rows with NaN or infinity among those up to row {batch.rows[-1]}, "
                f"the first is row {batch.rows[np.argmax(bad)]}"
            )
        if self._rounded_rows is not None:  # at the first assignment, batches are of adjacent rows
            self._row_screen.fill(batch, self._rounded_rows[batch.rows[0] : batch.rows[-1] + 1])

    def _tighten(self, batch):
        """Recompute lower bounds if this one dot product may avoid the comparison with all centroids."""
        batch = batch.take(np.flatnonzero(self._rescore[batch.rows]))
        offset = self._row_screen.bounds.offset[batch.rows]
        self._lower_bound[batch.rows] = self._assigned_cosines(batch) - offset - MARGIN

    def _columns(self, clusters):
        """Centroids to compare rows with: their bounds and their rounded vectors."""
        return self._centroid_screen.candidates(clusters), self._rounded_centroids[clusters]

    def _compare(self, batch, columns, partial):
        """Assign a batch to the best of some centroids (see `loops.assign_rows`); return the number of products."""
        if not len(batch.rows):
            return 0
        candidates, matrix = columns
        assignment = Assignment(self.labels, self._lower_bound, self._upper_bound)
        step = int(np.clip(PRODUCTS_AT_ONCE // max(len(matrix), 1), 256, self._rows_per_batch))
        for first in range(0, len(batch.rows), step):
            some = batch.take(slice(first, first + step))
            products = self._multiply(some, matrix)
            loops.assign_rows(products, some, self._row_screen.bounds, self.centroids, candidates, assignment, partial)
        return len(batch.rows) * len(matrix)

    def _multiply(self, batch, matrix):
        """(m, k) products of the m rounded rows of a batch with the k rows of a matrix; valid until the next call."""
        d = self.rows.shape[1]
        if self._rounded_rows is None:
            rounded = self._row_screen.fill(batch, self._row_buffer.array((len(batch.rows), d), self._row_screen.dtype))
            return self._multiplier.multiply(rounded, matrix)
        first, stop = batch.rows[0], batch.rows[-1] + 1
        if len(batch.rows) >= DENSE * (stop - first):  # a copy of the rows would take longer than the other products
            products = self._multiplier.multiply(self._rounded_rows[first:stop], matrix)
            return products if stop - first == len(batch.rows) else products[batch.rows - first]
        rounded = self._row_buffer.array((len(batch.rows), d), self._row_screen.dtype)
        np.take(self._rounded_rows, batch.rows, axis=0, out=rounded, mode="clip")  # other modes copy once more
        return self._multiplier.multiply(rounded, matrix)

    def _move_rows(self, batch, old_labels):
        """Update sums and sizes of clusters after a batch got new labels; return the number of labels that changed."""
        new_labels = self.labels[batch.rows]
        moved = np.flatnonzero(old_labels != new_labels)
        moved = moved[np.argsort(new_labels[moved], kind="stable")]  # keeps the sum of a cluster in the cache
        joined, left = new_labels[moved], old_labels[moved]
        columns_per_thread = max(64, min(8192, -(-self._sums.shape[1] // threads())))
        loops.move_rows(batch.take(moved), joined, left, self._sums, columns_per_thread)
        left = left[left >= 0]
        k = len(self.sizes)
        self.sizes += np.bincount(joined, minlength=k) - np.bincount(left, minlength=k)
        self._changed[joined] = True
        self._changed[left] = True
        return len(moved)

    def _loosen_bounds(self, clusters, centre_steps, lengths):
        """Loosen the bounds of all rows after the centroids of `clusters` moved.

        A step changes the score of a row x by x·step - offset change = (x-µ)·step + µ·step, which lies within
        |x-µ||step| of µ·step (Cauchy-Schwarz inequality).

        Args:
            clusters: (m,) clusters.
            centre_steps: (m,) products of the centre with the steps.
            lengths: (m,) L2 norms of the steps.
        """
        moved = lengths > 0
        clusters = clusters[moved]
        self._moved = np.union1d(self._moved, clusters)
        if not self._norms_known or not len(clusters):
            return
        k, labels, norm = len(self.centroids), self.labels, self._row_screen.bounds.norm
        centre_step, length = np.zeros(k, np.float32), np.zeros(k, np.float32)
        centre_step[clusters] = centre_steps[moved]
        length[clusters] = lengths[moved] * (1 + MARGIN)
        # the longest step among the centroids that are not the row's own
        second, first = np.argsort(length)[-2:] if k > 1 else (0, 0)
        longest_other = np.where(labels == first, length[second], length[first])
        self._drift += (max(centre_step.max(), 0) + MARGIN) + longest_other * norm
        may_still_win = self._lower_bound + centre_step[labels] + length[labels] * norm > self._upper_bound
        self._rescore |= (length[labels] > 0) & may_still_win
        self._lower_bound += centre_step[labels] - MARGIN - length[labels] * norm


class Screen:
    """Rounds rows minus a centre for screening, and keeps bounds of what rounding cut off.

    Args:
        n: number of rows.
        d: numbers per row.
        centre: (d,) float32 vector that is subtracted from rows.
        int8: round to int8; otherwise rows stay float32, and the bounds cover the rounding of float32 products.

    Attributes:
        bounds: `RoundedRows` of the n rows, filled by `fill`.
        dtype: of the rounded rows.
    """

    def __init__(self, n: int, d: int, centre: np.ndarray, int8: bool):
        self.centre, self.int8, self.dtype = centre, int8, np.int8 if int8 else np.float32
        self.bounds = RoundedRows(
            scale=np.ones(n, np.float32),
            error=np.zeros(n, np.float32),
            norm=np.zeros(n, np.float32),
            offset=np.zeros(n),
        )
        self._relative_error = np.float32(d * 2.0**-24)  # of a float32 sum of d products, relative to the norms

    def fill(self, batch: RowBatch, rounded: np.ndarray | None = None) -> np.ndarray:
        """(m, d) rounded rows of a batch, written to `rounded` if it is given; their bounds are set at `batch.rows`."""
        if rounded is None:
            rounded = np.empty((len(batch.rows), batch.x.shape[1]), self.dtype)
        if self.int8:
            loops.quantise(batch, self.centre, rounded, self.bounds)
        else:
            loops.centre_rows(batch, self.centre, rounded, self.bounds)
            self.bounds.error[batch.rows] = self.bounds.norm[batch.rows] * self._relative_error
        return rounded

    def candidates(self, clusters: np.ndarray) -> Candidates:
        """Bounds of the centroids of `clusters`, where the rows of this screen are centroids."""
        scale, error, norm, offset = (bound[clusters] for bound in self.bounds)
        centre_product = offset + float(self.centre.astype(np.float64) @ self.centre)
        return Candidates(clusters, scale, error, norm, centre_product.astype(np.float32))


class Buffer:
    """Memory for arrays of which one is needed at a time: pages that were touched once cost nothing again."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def array(self, shape: tuple[int, int], dtype: DTypeLike) -> np.ndarray:
        """An array with arbitrary content; it is valid until the next call."""
        size = shape[0] * shape[1] * np.dtype(dtype).itemsize
        if len(self._memory) < size:
            self._memory = np.empty(size, np.uint8)
        return self._memory[:size].view(dtype).reshape(shape)


class Multiplier:
    """Products of rows with columns, in one buffer and one pool of threads."""

    def __init__(self) -> None:
        self._buffer = Buffer()
        self._pool = ThreadPoolExecutor(threads())

    def multiply(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Multiply (m, d) rows with (k, d) columns.

        Returns:
            (m, k): int32 from int8, exact; float32 from float32. It is valid until the next call.
        """
        shape = (len(rows), len(columns))
        if rows.dtype == np.float32:
            out = self._buffer.array(shape, np.float32)
            self._by_rows(lambda block: np.matmul(rows[block], columns.T, out=out[block]), len(rows))
            return out
        out = self._buffer.array(shape, np.int32)
        # torch reads rows of one number out of bounds: it mistakes the strides
        if rows.shape[1] > 1 and int8_is_faster(rows.shape[1]):
            _multiply_int8(rows, columns, out)
        else:
            wide = columns.astype(np.float32)
            self._by_rows(lambda block: _multiply_in_float32(rows[block], wide, out[block]), len(rows))
        return out

    def _by_rows(self, multiply, n):
        """Call a function with blocks of n rows, one block per thread and one BLAS thread per block."""
        step = -(-n // threads())
        with one_blas_thread():
            list(self._pool.map(lambda start: multiply(slice(start, start + step)), range(0, n, step)))


def _multiply_int8(rows, columns, out):
    """Products of int8 rows and columns in int32."""
    import torch

    torch._int_mm(torch.from_numpy(rows), torch.from_numpy(columns).T, out=torch.from_numpy(out))


def _multiply_in_float32(rows, columns, out):
    """Products of int8 rows and columns in int32, by exact float32 products of some numbers of a row at a time."""
    out[:] = 0
    for first in range(0, rows.shape[1], EXACT_NUMBERS):
        some = slice(first, first + EXACT_NUMBERS)
        products = rows[:, some].astype(np.float32) @ columns[:, some].T
        np.add(out, products, out=out, casting="unsafe")


@cache
def int8_is_faster(d: int) -> bool:
    """Whether int8 products of rows of d numbers are faster than float32 ones on this processor, measured once.

    Without units for int8, a product of a few rows says so: one of many would take longer than it saves.
    """
    for rows, clearly in ((16, 2), (256, 1)):
        int8, float32 = (_seconds(rows, min(max(d, 2), 2048), dtype) for dtype in (np.int8, np.float32))
        if int8 >= clearly * float32:
            return False
    return True


def _seconds(rows, d, dtype):
    """Duration of the second of two products of (rows, d) with (256, d) ones."""
    x, y = np.ones((rows, d), dtype), np.ones((256, d), dtype)
    out, multiplier = np.empty((rows, 256), np.int32), Multiplier()
    multiply = partial(_multiply_int8, x, y, out) if dtype == np.int8 else partial(multiplier.multiply, x, y)
    multiply()
    start = time.perf_counter()
    multiply()
    return time.perf_counter() - start
