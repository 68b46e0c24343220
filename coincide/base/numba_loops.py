"""Inner loops that numpy would pass over memory several times for, compiled by numba.

Rows x are float32, or float16 given as their uint16 bits (`bits`): numba has no float16 on a CPU.
Every loop gives the same numbers for any number of threads: a thread owns whole rows, clusters or
columns, and sums that cross threads are integers.
"""

import os
from functools import cache

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from threadpoolctl import ThreadpoolController

SUM_SCALE = 2.0**36  # unit rows are summed as integers of this step: exact, in any order, up to 2²⁷ rows


def bits(x):
    """x as the loops take it: float32, or the uint16 bits of float16."""
    return x.view(np.uint16) if x.dtype == np.float16 else x


def threads():
    """Threads that the loops run on in the calling thread, from this call on: COINCIDE_THREADS at most, where set.

    Not NUMBA_NUM_THREADS: set after numba was imported, it ends the next compilation with an error.
    """
    count = numba.get_num_threads()
    if (limit := int(os.environ.get("COINCIDE_THREADS", count))) < count:
        numba.set_num_threads(limit)
    return min(limit, count)


@cache
def _blas():
    return ThreadpoolController()


def one_blas_thread():
    """Context in which BLAS runs on the thread that calls it, for those who run several themselves.

    BLAS threads also go on spinning after a product, and take the cores from the loops that come next.
    """
    return _blas().limit(limits=1, user_api="blas")


@intrinsic
def _number(typing_context, value):
    """float32 of a float32, or of a float16's bits (one vector instruction of any x86 since 2013)."""
    if value == types.uint16:

        def convert(context, builder, signature, arguments):
            half = builder.bitcast(arguments[0], ir.HalfType())
            return builder.fpext(half, ir.FloatType())
    else:

        def convert(context, builder, signature, arguments):
            return arguments[0]

    return types.float32(value), convert


_serial = numba.njit(cache=True, nogil=True, fastmath={"reassoc", "nsz", "contract"})
_threaded = numba.njit(cache=True, nogil=True, parallel=True, fastmath={"reassoc", "nsz", "contract"})
_finite = numba.njit(cache=True, nogil=True, parallel=True, fastmath={"reassoc", "nsz", "contract", "nnan"})


@_serial
def _dot(x, c):
    total = 0.0
    for j in range(len(x)):
        total += np.float64(_number(x[j])) * np.float64(c[j])
    return total


@_threaded
def inverse_norms(x, where, rows, out):
    """1/|x_i| in float32, 0 for a zero row, NaN for a row with NaN or infinity.

    Here and below the rows stand at places `where` in x, and at places `rows` in arrays of all rows.
    """
    for m in numba.prange(len(rows)):
        i = where[m]
        total = 0.0
        for j in range(x.shape[1]):
            value = np.float64(_number(x[i, j]))
            total += value * value
        # by comparisons: numba's isfinite is x - x == 0, which reassociation takes for true
        out[rows[m]] = np.float32(1 / np.sqrt(total)) if 0 < total < np.inf else 0 if total == 0 else np.nan


@_threaded
def add_rows(x, where, inverse, rows, add, take, sums, chunk):
    """Add unit rows to the integer sums of the clusters `add`, and take them from those in `take` (-1: none).

    Args:
        x, where, inverse, rows: the rows and their inverse norms.
        add, take: (m,) clusters.
        sums: (K, d) int64, changed in place.
        chunk: columns that a thread owns.
    """
    d = x.shape[1]
    for part in numba.prange((d + chunk - 1) // chunk):
        first, last = part * chunk, min(d, part * chunk + chunk)
        for m in range(len(where)):
            i = where[m]
            factor = np.float32(inverse[rows[m]] * SUM_SCALE)
            to, origin = add[m], take[m]
            if origin < 0:
                for j in range(first, last):
                    sums[to, j] += np.int64(_number(x[i, j]) * factor)
            else:
                for j in range(first, last):
                    value = np.int64(_number(x[i, j]) * factor)
                    sums[to, j] += value
                    sums[origin, j] -= value


@_threaded
def centroids_of(sums, which, centroids, lengths):
    """Put the normalised sums of the clusters `which` into centroids, and the lengths of the sums into lengths."""
    for m in numba.prange(len(which)):
        k = which[m]
        total = 0.0
        for j in range(sums.shape[1]):
            value = np.float64(sums[k, j])
            total += value * value
        length = np.sqrt(total)
        lengths[k] = length / SUM_SCALE
        for j in range(sums.shape[1]):
            centroids[k, j] = np.float32(sums[k, j] / length) if length > 0 else np.float32(0)


@_finite
def quantise(x, where, inverse, rows, centre, q, scale, rest, spread, offset):
    """Unit rows less the centre as int8 times a scale, and what is lost by it.

    Args:
        x, where, inverse, rows: the rows and their inverse norms.
        centre: (d,) float32.
        q: (m, d) int8, filled: round((x·inverse - centre) / scale).
        scale: (n,) float32, filled at `rows`.
        rest: (n,) float32, filled at `rows`: no less than the L2 norm of what the rounding cut off.
        spread: (n,) float32, filled at `rows`: no less than the L2 norm of the centred row.
        offset: (n,) float64, filled at `rows`: (unit row - centre) · centre.
    """
    d = x.shape[1]
    for m in numba.prange(len(rows)):
        i, row = where[m], rows[m]
        largest, square, along = np.float32(0), 0.0, 0.0
        for j in range(d):
            value = _number(x[i, j]) * inverse[row] - centre[j]
            largest = max(largest, abs(value))
            square += np.float64(value) * np.float64(value)
            along += np.float64(value) * np.float64(centre[j])
        scale[row] = largest / np.float32(127)
        factor = np.float32(127) / largest if largest > 0 else np.float32(0)
        lost = 0.0
        for j in range(d):
            value = _number(x[i, j]) * inverse[row] - centre[j]
            whole = np.rint(value * factor)
            q[m, j] = np.int8(whole)
            error = np.float64(value - whole * scale[row])
            lost += error * error
        rest[row], spread[row] = np.sqrt(lost) * (1 + 1e-5) + 1e-7, np.sqrt(square) * (1 + 1e-5) + 1e-7
        offset[row] = along


@_finite
def centre_rows(x, where, inverse, rows, centre, out, spread, offset):
    """Unit rows less the centre, in float32: (m, d) out, and spread and offset as `quantise` gives them."""
    for m in numba.prange(len(rows)):
        i, row = where[m], rows[m]
        square, along = 0.0, 0.0
        for j in range(x.shape[1]):
            value = _number(x[i, j]) * inverse[row] - centre[j]
            out[m, j] = value
            square += np.float64(value) * np.float64(value)
            along += np.float64(value) * np.float64(centre[j])
        spread[row] = np.sqrt(square) * (1 + 1e-5) + 1e-7
        offset[row] = along


@_finite
def nearest(products, rows, scale, rest, spread, offset, c_scale, c_rest, c_spread, c_along, highest):
    """Raise `highest` (n,) to an upper bound of the cosine of each row with the centroids; as in `decide`."""
    for m in numba.prange(len(rows)):
        i = rows[m]
        s, e, a = scale[i], rest[i], spread[i] + rest[i]
        top = np.float32(-np.inf)
        for k in range(products.shape[1]):
            value = products[m, k] * (s * c_scale[k]) + c_along[k] + (e * c_spread[k] + a * c_rest[k])
            top = max(top, value)
        highest[i] = max(highest[i], np.float64(top) + offset[i])


@_finite
def two_best(products, rows, scale, c_scale, labels, own, second):
    """The scaled product of each row with its own centroid, and the largest with another, at the places `rows`."""
    for m in numba.prange(len(rows)):
        i = rows[m]
        top, label = np.float32(-2), labels[i]
        for k in range(products.shape[1]):
            value = products[m, k] * (scale[i] * c_scale[k])
            top = max(top, np.float32(-2) if k == label else value)
        own[i] = products[m, label] * (scale[i] * c_scale[label])
        second[i] = top


@_threaded
def similarities(x, where, inverse, rows, centroids, labels, out):
    """Cosine of rows with their centroids: (n,) labels, (m,) out."""
    for m in numba.prange(len(rows)):
        i = rows[m]
        out[m] = _dot(x[where[m]], centroids[labels[i]]) * inverse[i]


@_finite
def decide(
    products, columns, x, where, inverse, rows, centroids, scale, rest, spread, offset,
    c_scale, c_rest, c_spread, c_along, labels, own, others, known,
):  # fmt: skip
    """Labels from approximate scores: the best centroid for certain, close calls decided by float64 dot products.

    The score of a centroid c for a row x is x·c - offset, with centred rows and centroids
    (x-µ)·(c-µ) + µ·c. An approximate product misses it by at most |x̃||c-µ| + |x-µ||c̃| where ~ marks
    what rounding cut off (Cauchy-Schwarz), so a centroid whose upper bound is below the best lower
    bound is out for certain, and the few that are left are compared exactly.

    Args:
        products: (m, k) int32 or float32 products of the m rows with the centroids in columns.
        columns: (k,) centroids, ascending.
        x, where, inverse, rows: the rows and their inverse norms.
        scale, rest, spread, offset: (n,) as `quantise` gives them.
        centroids: (K, d) float32.
        c_scale, c_rest, c_spread, c_along: (k,) the same of the centroids; c_along is µ·c.
        labels: changed in place.
        own: lower bound of the score of a row's own centroid; changed in place.
        others: upper bound of the scores of all others; changed in place.
        known: whether `columns` leaves out centroids, for which `own` and `others` speak.

    Ties go to the lowest index.
    """
    width = len(columns)
    for m in numba.prange(len(rows)):
        i = rows[m]
        if inverse[i] == 0:  # a zero row has no direction and no cluster: done with for good
            own[i], others[i] = np.inf, -np.inf
            continue
        s, e, a = scale[i], rest[i], spread[i] + rest[i]
        upper = np.empty(width, np.float32)
        best = np.float32(-np.inf)
        for k in range(width):
            value = products[m, k] * (s * c_scale[k]) + c_along[k]
            slack = (e * c_spread[k] + a * c_rest[k]) * np.float32(1.00001) + np.float32(2e-6)
            upper[k] = value + slack
            best = max(best, value - slack)
        label, second = -1, -np.inf
        if known:
            label, second = labels[i], others[i]
            best = max(best, own[i])
        close, count = np.empty(width, np.int64), 0  # columns that can be the best
        outside = np.float32(-np.inf)
        for start in range(0, width, 64):
            stop = min(start + 64, width)
            top = np.float32(-np.inf)
            for k in range(start, stop):
                top = max(top, upper[k])
            if top < best:
                outside = max(outside, top)
                continue
            for k in range(start, stop):
                if known and columns[k] == labels[i]:
                    continue
                if upper[k] >= best:
                    close[count] = k
                    count += 1
                else:
                    outside = max(outside, upper[k])
        second = max(second, np.float64(outside))
        if count == (0 if known else 1):
            if not known:
                labels[i], own[i] = columns[close[0]], best
            others[i] = np.float32(second) + np.float32(1e-6)
            continue
        value = -np.inf
        if known:
            value = _dot(x[where[m]], centroids[label]) * inverse[i] - offset[i]
        for k in close[:count]:
            candidate = _dot(x[where[m]], centroids[columns[k]]) * inverse[i] - offset[i]
            if candidate > value or (candidate == value and columns[k] < label):
                second = max(second, value)
                value, label = candidate, columns[k]
            else:
                second = max(second, candidate)
        labels[i] = label
        own[i] = np.float32(value) - np.float32(1e-6)
        others[i] = np.float32(second) + np.float32(1e-6)


@_serial
def greedy_additions(kernel, to_cluster, to_picks, free, totals, picks, start, stop, tie):
    """Fill picks[start:stop]: each time the free member that leaves MMD² smallest; of those within `tie`, the first.

    Args:
        kernel: (n, n), or (1, n): that of the last pick before `start`.
        to_cluster: (n,) mean kernel of each member with the cluster.
        to_picks: (n,) summed kernel of each member with the picks but the last, changed in place.
        free: (n,) members that are not picked, changed in place.
        totals: summed kernel among the picks, and of the picks with the cluster; changed in place.
        picks: (m,) int64.
    """
    n = len(free)
    for i in range(start, stop):
        if i > 0:
            column = kernel[picks[i - 1]] if len(kernel) == n else kernel[0]
            for j in range(n):
                to_picks[j] += column[j]
        size, smallest = i + 1, np.inf
        for repeat in range(2):
            for j in range(n):
                if not free[j]:
                    continue
                # MMD² after adding the member, less the cluster's own constant term
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


@_threaded
def squared_distances(x, i, out):
    """Squared L2 distance of each row from row i, in float64."""
    for m in numba.prange(len(x)):
        total = 0.0
        for j in range(x.shape[1]):
            difference = np.float64(_number(x[m, j])) - np.float64(_number(x[i, j]))
            total += difference * difference
        out[m] = total
