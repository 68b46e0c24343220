"""Compiled inner loops of spherical k-means; see `coincide.base.numba_support`.

Notation: µ is the centre, a vector that is subtracted from rows and centroids before they are rounded;
x is a unit row, c a centroid. Since x·c = (x-µ)·(c-µ) + µ·c + (x-µ)·µ and the last term is the same for
all centroids, centroids are compared by their score (x-µ)·(c-µ) + µ·c, the cosine minus the row's offset
(x-µ)·µ.

Named tuples are unpacked before a parallel loop: inside one, numba reads wrong values from a named tuple that
was made outside of it.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from coincide.base.numba_support import inlined_finite, parallel, parallel_finite, serial, to_float32

SUM_SCALE = 2.0**36  # unit rows are summed as integers of this step: exact in any order, up to 2²⁷ rows
COLUMNS_PER_CHECK = 64  # columns whose largest upper bound is checked at once
MARGIN = 1e-6  # added to bounds for the rounding of float64 results to float32


class RowBatch(NamedTuple):
    """Rows that are processed together: row `rows[m]` of the data is `x[batch_rows[m]]`.

    Attributes:
        x: (b, d) float32, or float16 as its uint16 bits.
        batch_rows: (m,) positions in x.
        rows: (m,) positions in the data.
        inverse_norms: (n,) float32, 1/|row| of all rows of the data; 0 for a zero row.
    """

    x: np.ndarray
    batch_rows: np.ndarray
    rows: np.ndarray
    inverse_norms: np.ndarray

    def take(self, selected: np.ndarray) -> RowBatch:
        """The rows of this batch at the positions `selected`."""
        return self._replace(batch_rows=self.batch_rows[selected], rows=self.rows[selected])


class RoundedRows(NamedTuple):
    """What was rounded off when rows were prepared for screening; one number per row of the data.

    Attributes:
        scale: (n,) float32, row - centre ≈ scale · rounded row.
        error: (n,) float32, upper bound of the L2 norm of (row - centre) - scale · rounded row.
        norm: (n,) float32, upper bound of the L2 norm of row - centre.
        offset: (n,) float64, (row - centre)·centre.
    """

    scale: np.ndarray
    error: np.ndarray
    norm: np.ndarray
    offset: np.ndarray


class Candidates(NamedTuple):
    """The centroids in the columns of a product; scale, error and norm as in `RoundedRows`.

    Attributes:
        clusters: (k,) int64, ascending.
        scale, error, norm: (k,) float32.
        centre_product: (k,) float32, centre·centroid.
    """

    clusters: np.ndarray
    scale: np.ndarray
    error: np.ndarray
    norm: np.ndarray
    centre_product: np.ndarray


class Assignment(NamedTuple):
    """Label and bounds of each row (Hamerly 2010, carried from distances to dot products).

    Attributes:
        labels: (n,) int32 cluster of each row, -1 for none.
        lower_bound: (n,) float32, lower bound of the score of the row's own centroid.
        upper_bound: (n,) float32, upper bound of the scores of all other centroids.
    """

    labels: np.ndarray
    lower_bound: np.ndarray
    upper_bound: np.ndarray


@serial
def _dot(x, c):
    total = 0.0
    for j in range(len(x)):
        total += np.float64(to_float32(x[j])) * np.float64(c[j])
    return total


@parallel
def compute_inverse_norms(batch: RowBatch) -> None:
    """Fill `batch.inverse_norms` at `batch.rows`: 0 for a zero row, NaN for a row with NaN or infinity."""
    x, batch_rows, rows, inverse_norms = batch
    for m in numba.prange(len(rows)):
        i = batch_rows[m]
        total = 0.0
        for j in range(x.shape[1]):
            value = np.float64(to_float32(x[i, j]))
            total += value * value
        # comparisons, not np.isfinite: numba computes it as x - x == 0, which reassociation simplifies to true
        inverse_norm = np.float32(1 / np.sqrt(total)) if 0 < total < np.inf else 0 if total == 0 else np.nan
        inverse_norms[rows[m]] = inverse_norm


@parallel
def move_rows(
    batch: RowBatch, new_labels: np.ndarray, old_labels: np.ndarray, sums: np.ndarray, columns_per_thread: int
) -> None:
    """Add unit rows to the sums of their new clusters and subtract them from those of their old ones.

    Args:
        batch: m rows.
        new_labels: (m,) clusters.
        old_labels: (m,) clusters; -1 for a row that was in none.
        sums: (K, d) int64, in steps of 1 / SUM_SCALE; changed in place.
        columns_per_thread: columns of the sums that one thread handles.
    """
    x, batch_rows, rows, inverse_norms = batch
    d = x.shape[1]
    for block in numba.prange((d + columns_per_thread - 1) // columns_per_thread):
        first, last = block * columns_per_thread, min(d, block * columns_per_thread + columns_per_thread)
        for m in range(len(rows)):
            i = batch_rows[m]
            factor = np.float32(inverse_norms[rows[m]] * SUM_SCALE)
            new, old = new_labels[m], old_labels[m]
            if old < 0:
                for j in range(first, last):
                    sums[new, j] += np.int64(to_float32(x[i, j]) * factor)
            else:
                for j in range(first, last):
                    value = np.int64(to_float32(x[i, j]) * factor)
                    sums[new, j] += value
                    sums[old, j] -= value


@parallel
def normalise_sums(
    sums: np.ndarray,
    clusters: np.ndarray,
    centroids: np.ndarray,
    lengths: np.ndarray,
    centre: np.ndarray,
    centre_steps: np.ndarray,
    step_lengths: np.ndarray,
) -> None:
    """Set the centroids of some clusters to their normalised sums.

    Args:
        sums: (K, d) int64, in steps of 1 / SUM_SCALE.
        clusters: (m,) clusters.
        centroids: (K, d) float32, changed in place at `clusters`.
        lengths: (K,) float64, set to the L2 norms of the sums at `clusters`.
        centre: (d,) float32.
        centre_steps: (m,) float64, filled with the products of the centre with the steps of the centroids.
        step_lengths: (m,) float64, filled with the L2 norms of the steps.
    """
    for m in numba.prange(len(clusters)):
        k = clusters[m]
        total = 0.0
        for j in range(sums.shape[1]):
            value = np.float64(sums[k, j])
            total += value * value
        length = np.sqrt(total)
        lengths[k] = length / SUM_SCALE
        centre_step, square = 0.0, 0.0
        for j in range(sums.shape[1]):
            centroid = np.float32(sums[k, j] / length) if length > 0 else np.float32(0)
            step = np.float64(centroid) - np.float64(centroids[k, j])
            centroids[k, j] = centroid
            centre_step += step * np.float64(centre[j])
            square += step * step
        centre_steps[m], step_lengths[m] = centre_step, np.sqrt(square)


@inlined_finite
def _upper_norm(sum_of_squares):
    """Square root, rounded up."""
    return np.sqrt(sum_of_squares) * (1 + 1e-5) + 1e-7


@parallel_finite
def quantise(batch: RowBatch, centre: np.ndarray, rounded: np.ndarray, bounds: RoundedRows) -> None:
    """Round unit rows minus the centre to int8.

    Args:
        batch: m rows.
        centre: (d,) float32.
        rounded: (m, d) int8, filled: round((row - centre) / scale), the largest number of a row is ±127.
        bounds: filled at `batch.rows`.
    """
    x, batch_rows, rows, inverse_norms = batch
    scale, error, norm, offset = bounds
    d = x.shape[1]
    for m in numba.prange(len(rows)):
        i, row = batch_rows[m], rows[m]
        largest, square, centre_product = np.float32(0), 0.0, 0.0
        for j in range(d):
            value = to_float32(x[i, j]) * inverse_norms[row] - centre[j]
            largest = max(largest, abs(value))
            square += np.float64(value) * np.float64(value)
            centre_product += np.float64(value) * np.float64(centre[j])
        scale[row] = largest / np.float32(127)
        factor = np.float32(127) / largest if largest > 0 else np.float32(0)
        error_square = 0.0
        for j in range(d):
            value = to_float32(x[i, j]) * inverse_norms[row] - centre[j]
            whole = np.rint(value * factor)
            rounded[m, j] = np.int8(whole)
            difference = np.float64(value - whole * scale[row])
            error_square += difference * difference
        error[row], norm[row], offset[row] = _upper_norm(error_square), _upper_norm(square), centre_product


@parallel_finite
def centre_rows(batch: RowBatch, centre: np.ndarray, centred: np.ndarray, bounds: RoundedRows) -> None:
    """Unit rows minus the centre, in float32.

    Args:
        batch: m rows.
        centre: (d,) float32.
        centred: (m, d) float32, filled.
        bounds: `norm` and `offset` are filled at `batch.rows`.
    """
    x, batch_rows, rows, inverse_norms = batch
    _, _, norm, offset = bounds
    for m in numba.prange(len(rows)):
        i, row = batch_rows[m], rows[m]
        square, centre_product = 0.0, 0.0
        for j in range(x.shape[1]):
            value = to_float32(x[i, j]) * inverse_norms[row] - centre[j]
            centred[m, j] = value
            square += np.float64(value) * np.float64(value)
            centre_product += np.float64(value) * np.float64(centre[j])
        norm[row], offset[row] = _upper_norm(square), centre_product


@parallel_finite
def raise_cosine_bounds(
    products: np.ndarray, rows: np.ndarray, bounds: RoundedRows, candidates: Candidates, upper_bounds: np.ndarray
) -> None:
    """Raise upper bounds of each row's largest cosine so that they cover the candidates, too.

    Args:
        products: (m, k) products of the rounded rows with the rounded candidates.
        rows: (m,) positions of the rows in the data.
        bounds, candidates: of the rows and of the k candidates; the error bound is that of `assign_rows`.
        upper_bounds: (n,) float64, changed in place at `rows`.
    """
    scale, error, norm, offset = bounds
    _, c_scale, c_error, c_norm, c_centre_product = candidates
    for m in numba.prange(len(rows)):
        row = rows[m]
        rounded_norm = norm[row] + error[row]
        largest = np.float32(-np.inf)
        for k in range(products.shape[1]):
            score = products[m, k] * (scale[row] * c_scale[k]) + c_centre_product[k]
            largest = max(largest, score + (error[row] * c_norm[k] + rounded_norm * c_error[k]))
        upper_bounds[row] = max(upper_bounds[row], np.float64(largest) + offset[row])


@parallel
def assigned_cosines(batch: RowBatch, centroids: np.ndarray, labels: np.ndarray, out: np.ndarray) -> None:
    """Cosine of each row with the centroid of its label: (n,) labels, (m,) float32 out."""
    x, batch_rows, rows, inverse_norms = batch
    for m in numba.prange(len(rows)):
        row = rows[m]
        out[m] = _dot(x[batch_rows[m]], centroids[labels[row]]) * inverse_norms[row]


@parallel_finite
def assign_rows(
    products: np.ndarray,
    batch: RowBatch,
    bounds: RoundedRows,
    centroids: np.ndarray,
    candidates: Candidates,
    assignment: Assignment,
    partial: bool,
) -> None:
    """Assign rows to the centroid with the largest score; ties go to the lowest index.

    Rounded products decide which candidates can be a row's best (`_bound_scores`, `_close_candidates`). If
    that leaves more than one, they are compared by float64 dot products (`_best_exactly`).

    Args:
        products: (m, k) int32 or float32 products of the m rounded rows with the k rounded candidates.
        batch: m rows.
        bounds: what rounding cut off from the rows.
        centroids: (K, d) float32.
        candidates: the centroids that the rows are compared with.
        assignment: changed in place at `batch.rows`.
        partial: whether the candidates are only some of the centroids. A row's own centroid then keeps
            its lower bound, and `assignment.upper_bound` covers the centroids that are no candidates.
    """
    x, batch_rows, rows, inverse_norms = batch
    scale, error, norm, offset = bounds
    clusters, c_scale, c_error, c_norm, c_centre_product = candidates
    labels, lower_bound, upper_bound = assignment
    width = len(clusters)
    for m in numba.prange(len(rows)):
        row = rows[m]
        if inverse_norms[row] == 0:  # a zero row has no direction and no cluster: never compare it again
            lower_bound[row], upper_bound[row] = np.inf, -np.inf
            continue
        score_bounds = np.empty(width, np.float32)
        best = _bound_scores(
            products[m], scale[row], error[row], norm[row], c_scale, c_error, c_norm, c_centre_product, score_bounds
        )
        label, second = -1, -np.inf  # best centroid so far, and upper bound of the scores of all others
        if partial:
            label, second = labels[row], upper_bound[row]
            best = max(best, lower_bound[row])
        close = np.empty(width, np.int64)
        count, excluded = _close_candidates(score_bounds, best, clusters, label, close)
        second = max(second, np.float64(excluded))
        if partial and count == 0:
            upper_bound[row] = np.float32(second) + np.float32(MARGIN)
        elif not partial and count == 1:
            labels[row], lower_bound[row] = clusters[close[0]], best
            upper_bound[row] = np.float32(second) + np.float32(MARGIN)
        else:
            label, score, second = _best_exactly(
                x[batch_rows[m]], inverse_norms[row], offset[row], centroids, clusters, close[:count], label, second
            )
            labels[row] = label
            lower_bound[row] = np.float32(score) - np.float32(MARGIN)
            upper_bound[row] = np.float32(second) + np.float32(MARGIN)


@inlined_finite
def _bound_scores(products, scale, error, norm, c_scale, c_error, c_norm, c_centre_product, upper_bounds):
    """Fill upper bounds of a row's scores with the candidates; return the largest lower bound.

    With ~ for what rounding cut off, a rounded product misses (x-µ)·(c-µ) by at most
    |x̃||c-µ| + (|x-µ| + |x̃|)|c̃| (Cauchy-Schwarz inequality). This slack is widened a little for float32.

    Args:
        products: (k,) products of the rounded row with the rounded candidates.
        scale, error, norm: of the row.
        c_scale, c_error, c_norm, c_centre_product: (k,), of the candidates.
        upper_bounds: (k,) float32, filled.
    """
    rounded_norm = norm + error
    best = np.float32(-np.inf)
    for k in range(len(upper_bounds)):
        score = products[k] * (scale * c_scale[k]) + c_centre_product[k]
        slack = (error * c_norm[k] + rounded_norm * c_error[k]) * np.float32(1.00001) + np.float32(2e-6)
        upper_bounds[k] = score + slack
        best = max(best, score - slack)
    return best


@inlined_finite
def _close_candidates(upper_bounds, best, clusters, label, close):
    """Columns whose upper bound reaches the best lower bound, without the column of the cluster `label`.

    Returns:
        how many columns were written to `close`; the largest upper bound of the columns that were left out,
        except that of `label`.
    """
    width, count, excluded = len(upper_bounds), 0, np.float32(-np.inf)
    for start in range(0, width, COLUMNS_PER_CHECK):
        stop = min(start + COLUMNS_PER_CHECK, width)
        largest = np.float32(-np.inf)
        for k in range(start, stop):
            largest = max(largest, upper_bounds[k])
        if largest < best:
            excluded = max(excluded, largest)
            continue
        for k in range(start, stop):
            if clusters[k] == label:
                continue
            if upper_bounds[k] >= best:
                close[count] = k
                count += 1
            else:
                excluded = max(excluded, upper_bounds[k])
    return count, excluded


@inlined_finite
def _best_exactly(x, inverse_norm, offset, centroids, clusters, close, label, second):
    """Compare close candidates, and the centroid `label` unless it is -1, by float64 dot products.

    Returns:
        (label, score, second): the best centroid, its score, and an upper bound of the scores of all others.
    """
    score = -np.inf
    if label >= 0:
        score = _dot(x, centroids[label]) * inverse_norm - offset
    for k in close:
        candidate = _dot(x, centroids[clusters[k]]) * inverse_norm - offset
        if candidate > score or (candidate == score and clusters[k] < label):
            second = max(second, score)
            score, label = candidate, clusters[k]
        else:
            second = max(second, candidate)
    return label, score, second
