"""Exact Lloyd iterations on the unit sphere on GPUs: half-precision products, close calls decided again.

Rows stay in the dtype that they have (activations: float16) on the device, or are streamed to it
from pinned memory, the next block on its way while this one is multiplied. Products are float16
with float32 sums (tensor cores). What rounding a centroid to float16 can change is bounded, and where
more than one centroid can be a row's best they are compared in float64, so that labels are those of
`coincide.clustering.lloyd.Lloyd`; so are the sums, which are integers.

Several devices each have a part of the rows; what they exchange is sums and centroids.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from coincide.base.rows import ahead
from coincide.clustering.loops import SUM_SCALE

BLOCK = 8192  # rows multiplied at once
AT_ONCE = 2**28  # bytes of float64 or int64 rows at once
CENTROID_SCALE = 16.0  # keeps the small numbers of a unit centroid clear of float16's subnormals
ROW_SCALE = 64.0  # the same of float32 rows, which are rounded, too
RESERVED = 0.15  # share of a device's memory that is left free


class DeviceLloyd:
    """State of spherical Lloyd iterations on devices; has the methods of `coincide.clustering.lloyd.Lloyd`.

    Args:
        rows: `Rows` of n rows of d numbers.
        centroids: (K, d) float32 unit rows to begin with.
        devices: torch devices; each gets as many rows.
        resident: hold the rows on the devices; None: where they fit.

    Attributes:
        labels: (n,) int32; -1 for a zero row.
        sizes: (K,) int64.
        work: products made in the last `assign`, as a share of n·K.
    """

    work = 1.0

    def __init__(self, rows, centroids, devices, *, resident=None):
        n, self.rows, self.devices = len(rows), rows, [torch.device(device) for device in devices]
        self._centroids = torch.as_tensor(np.ascontiguousarray(centroids, np.float32)).to(self.devices[0])
        bounds = np.linspace(0, n, len(self.devices) + 1).astype(np.int64)
        self._parts = [
            _Part(rows, int(first), int(last), len(centroids), device, resident)
            for first, last, device in zip(bounds, bounds[1:], self.devices)
        ]
        self._pool = ThreadPoolExecutor(len(self._parts))
        self.labels = np.full(n, -1, np.int32)
        self.sizes = np.zeros(len(centroids), np.int64)

    @property
    def centroids(self):
        """(K, d) float32 array."""
        return self._centroids.cpu().numpy()

    def assign(self, progress=None):
        """Give every row the centroid with the largest dot product; ties: lowest index.

        Returns:
            number of rows whose label changed.

        Raises:
            ValueError: NaN or infinity among the rows.
        """
        changed = sum(self._pool.map(lambda part: part.assign(self._centroids.to(part.device)), self._parts))
        for part in self._parts:
            self.labels[part.first : part.last] = part.labels.cpu().numpy()
        self.sizes = np.bincount(self.labels[self.labels >= 0], minlength=len(self._centroids))
        if progress is not None:
            progress.update(len(self.rows))
        return changed

    def update(self):
        """Move the centroids to the normalised sums of their members.

        Returns:
            the objective: mean similarity of the rows with the new centroids.
        """
        total, step = 0.0, max(1, AT_ONCE // (8 * self._centroids.shape[1]))
        for first in range(0, len(self._centroids), step):
            part = slice(first, first + step)
            sums = sum(p.sums[part].to(self.devices[0]) for p in self._parts).double()
            lengths = sums.square().sum(dim=1).sqrt()
            filled = lengths > 0
            self._centroids[part][filled] = (sums[filled] / lengths[filled, None]).float()
            total += float(lengths.sum()) / SUM_SCALE
        return total / len(self.rows)

    def replace(self, which, centroids):
        """Put centroids in place of others: (m,) indices, (m, d) float32 unit rows."""
        which = torch.as_tensor(which, device=self.devices[0])
        self._centroids[which] = torch.as_tensor(centroids).to(self.devices[0])

    def similarity(self):
        """(n,) float32 cosine of each row with its centroid."""
        parts = self._pool.map(lambda part: part.similarity(self._centroids.to(part.device)), self._parts)
        return np.concatenate(list(parts))


class _Part:
    """The rows from `first` to `last`, and what one device knows of them."""

    def __init__(self, rows, first, last, k, device, resident):
        self.rows, self.first, self.last, self.device = rows, first, last, device
        n, d = last - first, rows.shape[1]
        self.labels = torch.full((n,), -1, dtype=torch.int32, device=device)
        self.inverse = torch.full((n,), torch.nan, device=device)
        self.sums = torch.zeros((k, d), dtype=torch.int64, device=device)
        self._known, self._held = False, None
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        if fits(device, n, d, k) if resident is None else resident:
            self._held = torch.empty((n, d), dtype=_dtype(rows), device=device)
            for start, x in self._stream():
                self._held[start : start + len(x)] = x

    def assign(self, centroids):
        """Labels of all rows, and the sums that follow from them; returns how many labels changed."""
        half = (centroids * CENTROID_SCALE).half()
        lost = (centroids - half.float() / CENTROID_SCALE).double().norm(dim=1).max()
        # beside what centroids lost: float32 sums of d products, each of parts of unit vectors
        slack = float(lost) * 1.001 + 2**-22 * centroids.shape[1] ** 0.5
        changed = 0
        for start, x in self._blocks():
            where = slice(start, start + len(x))
            if not self._known:
                self.inverse[where] = _inverse_norms(x, self.first + start)
            inverse = self.inverse[where]
            labels = _nearest(x, inverse, centroids, half, slack)
            before = self.labels[where]
            moved = torch.nonzero(labels != before).flatten()
            self._move(x, inverse, moved, labels, before)
            self.labels[where] = labels
            changed += len(moved)
        self._known = True
        return changed

    def similarity(self, centroids):
        """(n,) cosines with the own centroids, as an array."""
        result = torch.empty(self.last - self.first)
        for start, x in self._blocks():
            for rows in _some(len(x), x.shape[1]):
                where = slice(start + rows.start, start + rows.stop)
                own = centroids[self.labels[where].clamp(min=0).long()].double()
                result[where] = ((x[rows].double() * own).sum(dim=1) * self.inverse[where]).float().cpu()
        return result.numpy()

    def _move(self, x, inverse, moved, labels, before):
        """Add rows to the sums of the clusters they came to, and take them from those they left."""
        for some in _some(len(moved), x.shape[1]):
            rows = moved[some]
            values = (x[rows].float() * (inverse[rows] * SUM_SCALE)[:, None]).long()
            to, origin = labels[rows].long(), before[rows].long()
            added, left = to >= 0, origin >= 0
            self.sums.index_add_(0, to[added], values[added])
            self.sums.index_add_(0, origin[left], values[left], alpha=-1)

    def _blocks(self):
        if self._held is None:
            return self._stream()
        return ((start, self._held[start : start + BLOCK]) for start in range(0, len(self._held), BLOCK))

    def _stream(self):
        """Yield (start, rows on the device), the next ones on their way."""
        for start, x, arrived in ahead(map(self._sent, self.rows.batches(np.arange(self.first, self.last), BLOCK))):
            if arrived is not None:
                torch.cuda.current_stream(self.device).wait_event(arrived)
                x.record_stream(torch.cuda.current_stream(self.device))
            yield start, x

    def _sent(self, batch):
        x, where, rows = batch
        whole = where[-1] - where[0] + 1 == len(where)
        x = torch.from_numpy(np.ascontiguousarray(x[where[0] : where[-1] + 1] if whole else x[where]))
        start = int(rows[0]) - self.first
        if self._copies is None:
            return start, x, None
        with torch.cuda.stream(self._copies):
            return start, x.pin_memory().to(self.device, non_blocking=True), self._copies.record_event()


def fits(device, n, d, k, *, row_bytes=2):
    """Whether n rows of d numbers, k centroids and what is computed on the way fit a device's free memory."""
    if device.type != "cuda":
        return True
    free, total = torch.cuda.mem_get_info(device)
    needed = n * d * row_bytes + k * d * (8 + 4 + 4 + 2) + 2 * BLOCK * k * 4 + 3 * AT_ONCE
    return needed <= free - RESERVED * total


def _dtype(rows):
    return torch.from_numpy(rows.take(np.arange(1))).dtype


def _some(n, d):
    """Slices over n rows of d numbers of 8 bytes."""
    step = max(1, AT_ONCE // (8 * d))
    return [slice(start, min(n, start + step)) for start in range(0, n, step)]


def _inverse_norms(x, first):
    """1/|x_i|, 0 for a zero row; float32."""
    norms = torch.cat([x[rows].double().square().sum(dim=1).sqrt() for rows in _some(*x.shape)])
    bad = torch.nonzero(~torch.isfinite(norms)).flatten()
    if len(bad):
        raise ValueError(f"x has rows with NaN or infinity, the first is row {first + int(bad[0])}")
    return torch.where(norms > 0, 1 / norms, 0).float()


def _nearest(x, inverse, centroids, half, slack):
    """(m,) int32 labels of rows: the centroid with the largest dot product, ties to the lowest; -1 for a zero row."""
    if x.dtype == torch.float16:
        scaled, scale = x, inverse / CENTROID_SCALE
    else:
        unit = x.float() * inverse[:, None]
        scaled, scale = (unit * ROW_SCALE).half(), torch.full_like(inverse, 1 / (ROW_SCALE * CENTROID_SCALE))
        slack = slack + float((unit - scaled.float() / ROW_SCALE).norm(dim=1).max()) * 1.001
    scores = product(scaled, half)
    best, labels = scores.max(dim=1)
    # scores count in a row's own scale; a bound on a cosine counts there 1 / scale
    bound = torch.where(inverse > 0, best - 2 * slack / scale.clamp(min=1e-38), torch.inf)
    # the best among all others: its own is out of the way for a moment
    scores.scatter_(1, labels[:, None], -torch.inf)
    close = torch.nonzero(scores.max(dim=1).values >= bound).flatten()
    scores.scatter_(1, labels[:, None], best[:, None])
    if len(close):
        labels[close] = _decided(x, inverse, centroids, close, torch.nonzero(scores[close] >= bound[close, None]))
    return torch.where(inverse > 0, labels, -1).int()


def _decided(x, inverse, centroids, close, pairs):
    """Labels of the rows `close` by float64 dot products with the centroids that `pairs` names for each."""
    value = torch.empty(len(pairs), dtype=torch.float64, device=x.device)
    for some in _some(len(pairs), 2 * x.shape[1]):
        row, column = pairs[some].T
        value[some] = (x[close[row]].double() * centroids[column].double()).sum(dim=1)
    row, column = pairs.T
    best = torch.full((len(close),), -torch.inf, dtype=torch.float64, device=x.device)
    best = best.scatter_reduce(0, row, value, "amax")
    first = torch.full((len(close),), len(centroids), dtype=torch.int64, device=x.device)
    column = torch.where(value == best[row], column, len(centroids))
    return first.scatter_reduce(0, row, column, "amin")


def product(rows, columns):
    """(m, k) float32 products of float16 (m, d) and (k, d), summed in float32."""
    if rows.device.type != "cuda":
        return rows.float() @ columns.float().T
    try:
        return torch.mm(rows, columns.T, out_dtype=torch.float32)
    except TypeError as error:  # torch below 2.8
        raise ImportError("clustering backend 'torch' on a GPU needs torch 2.8 or newer") from error
