"""Exact Lloyd iterations on the unit sphere on GPUs: half-precision products, close calls decided in float64.

Rows keep their dtype (activations: float16). They stay on the device, or are streamed to it from pinned memory
while the block before is multiplied. Products are float16 with float32 sums (tensor cores). The effect of
rounding centroids to float16 is bounded, and where more than one centroid can be a row's best, they are
compared in float64: the labels are those of `coincide.clustering.lloyd.Lloyd`. So are the sums of members,
which are integers.

With several devices each has a share of the rows; they exchange sums and centroids.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from coincide.base.progress import Progress
from coincide.base.rows import Rows, ahead
from coincide.clustering.loops import SUM_SCALE

BLOCK = 8192  # rows multiplied at once
BYTES_AT_ONCE = 2**28  # of float64 or int64 rows
CENTROID_SCALE = 16.0  # keeps the small numbers of a unit centroid above the subnormal numbers of float16
ROW_SCALE = 64.0  # the same for float32 rows, which are rounded to float16, too
RESERVED = 0.15  # share of a device's memory that is kept free


class DeviceLloyd:
    """State of spherical Lloyd iterations on devices; has the methods of `coincide.clustering.lloyd.Lloyd`.

    Args:
        rows: n rows of d numbers.
        centroids: (K, d) float32 unit rows to start from.
        devices: torch devices; each gets the same number of rows.
        resident: hold the rows on the devices; None: if they fit.

    Attributes:
        labels: (n,) int32; -1 for a zero row.
        sizes: (K,) int64 number of members.
        work: products computed in the last `assign`, as a share of n·K.
    """

    work = 1.0

    def __init__(
        self,
        rows: Rows,
        centroids: np.ndarray,
        devices: Sequence[str | torch.device],
        *,
        resident: bool | None = None,
    ):
        n, self.rows, self.devices = len(rows), rows, [torch.device(device) for device in devices]
        self._centroids = torch.as_tensor(np.ascontiguousarray(centroids, np.float32)).to(self.devices[0])
        bounds = np.linspace(0, n, len(self.devices) + 1).astype(np.int64)
        self._shares = [
            _RowsOnDevice(rows, int(first), int(last), len(centroids), device, resident)
            for first, last, device in zip(bounds, bounds[1:], self.devices)
        ]
        self._pool = ThreadPoolExecutor(len(self._shares))
        self.labels = np.full(n, -1, np.int32)
        self.sizes = np.zeros(len(centroids), np.int64)

    @property
    def centroids(self) -> np.ndarray:
        """(K, d) float32 array."""
        return self._centroids.cpu().numpy()

    def assign(self, progress: Progress | None = None) -> int:
        """Assign every row to the centroid with the largest dot product; ties: lowest index.

        Args:
            progress: counts the rows.

        Returns:
            number of rows whose label changed.

        Raises:
            ValueError: NaN or infinity among the rows.
        """
        changed = sum(self._pool.map(lambda share: share.assign(self._centroids.to(share.device)), self._shares))
        for share in self._shares:
            self.labels[share.first : share.last] = share.labels.cpu().numpy()
        self.sizes = np.bincount(self.labels[self.labels >= 0], minlength=len(self._centroids))
        if progress is not None:
            progress.update(len(self.rows))
        return changed

    def update(self) -> float:
        """Move the centroids to the normalised sums of their members.

        Returns:
            the objective: mean similarity of the rows with the new centroids.
        """
        total, step = 0.0, max(1, BYTES_AT_ONCE // (8 * self._centroids.shape[1]))
        for first in range(0, len(self._centroids), step):
            clusters = slice(first, first + step)
            per_device = (share.sums[clusters].to(self.devices[0]) for share in self._shares)
            sums = sum(per_device, torch.zeros((), dtype=torch.int64, device=self.devices[0])).double()
            lengths = sums.square().sum(dim=1).sqrt()
            filled = lengths > 0
            self._centroids[clusters][filled] = (sums[filled] / lengths[filled, None]).float()
            total += float(lengths.sum()) / SUM_SCALE
        return total / len(self.rows)

    def replace(self, clusters: np.ndarray, centroids: np.ndarray) -> None:
        """Replace the centroids of (m,) clusters by (m, d) float32 unit rows."""
        device = self.devices[0]
        self._centroids[torch.as_tensor(clusters, device=device)] = torch.as_tensor(centroids).to(device)

    def similarity(self) -> np.ndarray:
        """(n,) float32 cosine of each row with its centroid."""
        results = self._pool.map(lambda share: share.similarity(self._centroids.to(share.device)), self._shares)
        return np.concatenate(list(results))


class _RowsOnDevice:
    """The rows from `first` to `last`, their labels, and the sums of their clusters, on one device."""

    def __init__(self, rows, first, last, k, device, resident):
        self.rows, self.first, self.last, self.device = rows, first, last, device
        n, d = last - first, rows.shape[1]
        self.labels = torch.full((n,), -1, dtype=torch.int32, device=device)
        self.inverse_norms = torch.full((n,), torch.nan, device=device)
        self.sums = torch.zeros((k, d), dtype=torch.int64, device=device)
        self._norms_known = False  # True after the first assignment
        self._copy_stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._resident_rows = None
        if fits(device, n, d, k) if resident is None else resident:
            self._resident_rows = torch.empty((n, d), dtype=_dtype(rows), device=device)
            for start, x in self._streamed_blocks():
                self._resident_rows[start : start + len(x)] = x

    def assign(self, centroids):
        """Update labels and sums for new centroids; return the number of labels that changed."""
        half = (centroids * CENTROID_SCALE).half()
        rounding_error = (centroids - half.float() / CENTROID_SCALE).double().norm(dim=1).max()
        # plus the rounding of float32 sums of d products, whose factors are entries of unit vectors
        slack = float(rounding_error) * 1.001 + 2**-22 * centroids.shape[1] ** 0.5
        changed = 0
        for start, x in self._blocks():
            block = slice(start, start + len(x))
            if not self._norms_known:
                self.inverse_norms[block] = _inverse_norms(x, self.first + start)
            inverse_norms = self.inverse_norms[block]
            new_labels = _nearest(x, inverse_norms, centroids, half, slack)
            old_labels = self.labels[block]
            moved = torch.nonzero(new_labels != old_labels).flatten()
            self._move_rows(x, inverse_norms, moved, new_labels, old_labels)
            self.labels[block] = new_labels
            changed += len(moved)
        self._norms_known = True
        return changed

    def similarity(self, centroids):
        """(n,) float32 array: cosine of each row with its centroid."""
        result = torch.empty(self.last - self.first)
        for start, x in self._blocks():
            for rows in _row_slices(len(x), x.shape[1]):
                block = slice(start + rows.start, start + rows.stop)
                assigned = centroids[self.labels[block].clamp(min=0).long()].double()
                cosine = (x[rows].double() * assigned).sum(dim=1) * self.inverse_norms[block]
                result[block] = cosine.float().cpu()
        return result.numpy()

    def _move_rows(self, x, inverse_norms, moved, new_labels, old_labels):
        """Add moved rows to the sums of their new clusters and subtract them from those of their old ones."""
        for selected in _row_slices(len(moved), x.shape[1]):
            rows = moved[selected]
            values = (x[rows].float() * (inverse_norms[rows] * SUM_SCALE)[:, None]).long()
            new, old = new_labels[rows].long(), old_labels[rows].long()
            joins, leaves = new >= 0, old >= 0
            self.sums.index_add_(0, new[joins], values[joins])
            self.sums.index_add_(0, old[leaves], values[leaves], alpha=-1)

    def _blocks(self):
        """Yield (position of the first row, rows on the device)."""
        if self._resident_rows is None:
            return self._streamed_blocks()
        starts = range(0, len(self._resident_rows), BLOCK)
        return ((start, self._resident_rows[start : start + BLOCK]) for start in starts)

    def _streamed_blocks(self):
        """The same, from host memory or disk; the next block is copied while one is in use."""
        batches = self.rows.batches(np.arange(self.first, self.last), BLOCK)
        for start, x, copied in ahead(map(self._copy_to_device, batches)):
            if copied is not None:
                torch.cuda.current_stream(self.device).wait_event(copied)
                x.record_stream(torch.cuda.current_stream(self.device))
            yield start, x

    def _copy_to_device(self, batch):
        """Start the copy of a batch; return its first position, the rows, and the event of the copy on a GPU."""
        x, batch_rows, rows = batch
        first, stop = batch_rows[0], batch_rows[-1] + 1
        adjacent = stop - first == len(batch_rows)
        x = torch.from_numpy(np.ascontiguousarray(x[first:stop] if adjacent else x[batch_rows]))
        start = int(rows[0]) - self.first
        if self._copy_stream is None:
            return start, x, None
        with torch.cuda.stream(self._copy_stream):
            return start, x.pin_memory().to(self.device, non_blocking=True), self._copy_stream.record_event()


def fits(device: torch.device, n: int, d: int, k: int, *, row_bytes: int = 2) -> bool:
    """Whether n rows of d numbers, k centroids and the working memory fit in a device's free memory.

    Args:
        device: torch device; on the CPU everything fits.
        n, d, k: numbers of rows, of numbers per row, and of centroids.
        row_bytes: bytes per number of a row.
    """
    if device.type != "cuda":
        return True
    free, total = torch.cuda.mem_get_info(device)
    # per number of the centroids: int64 sums, two float32 copies, one float16 copy; two blocks of float32 products
    needed = n * d * row_bytes + k * d * (8 + 4 + 4 + 2) + 2 * BLOCK * k * 4 + 3 * BYTES_AT_ONCE
    return needed <= free - RESERVED * total


def _dtype(rows):
    return torch.from_numpy(rows.take(np.arange(1))).dtype


def _row_slices(n, d):
    """Slices over n rows, each of at most BYTES_AT_ONCE bytes of d numbers of 8 bytes per row."""
    step = max(1, BYTES_AT_ONCE // (8 * d))
    return [slice(start, min(n, start + step)) for start in range(0, n, step)]


def _inverse_norms(x, first):
    """(m,) float32 1/|row|, 0 for a zero row; `first` is the position of the first row in the data."""
    norms = torch.cat([x[rows].double().square().sum(dim=1).sqrt() for rows in _row_slices(*x.shape)])
    bad = torch.nonzero(~torch.isfinite(norms)).flatten()
    if len(bad):
        raise ValueError(f"x has rows with NaN or infinity, the first is row {first + int(bad[0])}")
    return torch.where(norms > 0, 1 / norms, 0).float()


def _nearest(x, inverse_norms, centroids, half, slack):
    """Label rows with the centroid of the largest dot product; ties: lowest index.

    Args:
        x: (m, d) rows.
        inverse_norms: (m,) 1/|row|.
        centroids: (K, d) float32.
        half: (K, d) float16 centroids times CENTROID_SCALE.
        slack: upper bound of how much rounding the centroids changes a cosine.

    Returns:
        (m,) int32; -1 for a zero row.
    """
    if x.dtype == torch.float16:
        scaled, scale = x, inverse_norms / CENTROID_SCALE
    else:
        unit = x.float() * inverse_norms[:, None]
        scaled, scale = (unit * ROW_SCALE).half(), torch.full_like(inverse_norms, 1 / (ROW_SCALE * CENTROID_SCALE))
        slack = slack + float((unit - scaled.float() / ROW_SCALE).norm(dim=1).max()) * 1.001
    scores = product(scaled, half)  # scale · score is the cosine
    best, labels = scores.max(dim=1)
    # a centroid below this score cannot be the best: both scores are off by at most slack / scale
    lower_bound = torch.where(inverse_norms > 0, best - 2 * slack / scale.clamp(min=1e-38), torch.inf)
    # rows whose second best score reaches it; the best score is hidden to find the second
    scores.scatter_(1, labels[:, None], -torch.inf)
    close = torch.nonzero(scores.max(dim=1).values >= lower_bound).flatten()
    scores.scatter_(1, labels[:, None], best[:, None])
    if len(close):
        pairs = torch.nonzero(scores[close] >= lower_bound[close, None])
        labels[close] = _best_exactly(x, centroids, close, pairs)
    return torch.where(inverse_norms > 0, labels, -1).int()


def _best_exactly(x, centroids, close, pairs):
    """Labels of the rows at `close` by float64 dot products.

    Args:
        x: (m, d) rows.
        centroids: (K, d) float32.
        close: (r,) positions of rows in x.
        pairs: (p, 2) candidates: position in `close`, cluster.

    Returns:
        (r,) int64; ties go to the lowest cluster.
    """
    value = torch.empty(len(pairs), dtype=torch.float64, device=x.device)
    for selected in _row_slices(len(pairs), 2 * x.shape[1]):
        row, cluster = pairs[selected].T
        value[selected] = (x[close[row]].double() * centroids[cluster].double()).sum(dim=1)
    row, cluster = pairs.T
    best = torch.full((len(close),), -torch.inf, dtype=torch.float64, device=x.device)
    best = best.scatter_reduce(0, row, value, "amax")
    lowest = torch.full((len(close),), len(centroids), dtype=torch.int64, device=x.device)
    cluster = torch.where(value == best[row], cluster, len(centroids))
    return lowest.scatter_reduce(0, row, cluster, "amin")


def product(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """(m, k) float32 products of float16 (m, d) and (k, d), summed in float32.

    Raises:
        ImportError: torch is older than 2.8, on a GPU.
    """
    if rows.device.type != "cuda":
        return rows.float() @ columns.float().T
    try:
        return torch.mm(rows, columns.T, out_dtype=torch.float32)
    except TypeError as error:  # torch before 2.8
        raise ImportError("clustering backend 'torch' on a GPU needs torch 2.8 or newer") from error
