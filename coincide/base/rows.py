"""Reading (n, d) data that is an array, row blocks, or activations on disk."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from coincide.base.progress import Progress
from coincide.base.threads import one_blas_thread, threads

BYTES_AT_ONCE = 2**28  # of rows fetched for clusters that are worked on at the same time
LARGE = 2048  # members from which on a cluster is worth all threads


class Rows:
    """Rows of x, wherever they are: in memory, or fetched from disk as they are asked for.

    Args:
        x: (n, d) array; or an iterable of (n_i, d) arrays in row order, which is brought into
            memory; or an object with `shape`, `rows(indices)` and iteration over row blocks, such
            as `coincide.base.activation_store.Activations`, which is not.

    Raises:
        ValueError: if x is not two-dimensional or is empty.
    """

    def __init__(self, x):
        self.on_disk = hasattr(x, "rows") and hasattr(x, "shape")
        if not self.on_disk and not isinstance(x, np.ndarray):
            x = np.concatenate([np.asarray(block) for block in x])
        if len(x.shape) != 2 or 0 in x.shape:
            raise ValueError(f"x must have shape (n, d) with n, d > 0; got shape {tuple(x.shape)}")
        self.x, self.shape = x, tuple(x.shape)

    def __len__(self):
        return self.shape[0]

    def take(self, indices):
        """(len(indices), d) array of the rows at these positions.

        Raises:
            ValueError: a row with NaN or infinity among them.
        """
        rows = self.x.rows(indices) if self.on_disk else self.x[indices]
        _check_finite(rows, indices)
        return rows

    def in_memory(self):
        """The same rows, in memory."""
        if not self.on_disk:
            return self
        whole = None
        for start, block in self.blocks(len(self)):
            if whole is None:
                whole = np.empty(self.shape, block.dtype)
            whole[start : start + len(block)] = block
        return Rows(whole)

    def batches(self, rows, size):
        """Yield (x, where, rows) over these rows: part of them at a time, and where in x each of them stands.

        Args:
            rows: (m,) positions, ascending.
            size: rows at a time, at most.
        """
        parts = (rows[start : start + size] for start in range(0, len(rows), size))
        if not self.on_disk:
            return ((self.x, part, part) for part in parts)
        return ahead((self.x.rows(part), np.arange(len(part)), part) for part in parts)

    def blocks(self, size):
        """Yield (start, rows) over all rows in order, at most `size` rows at a time.

        Raises:
            ValueError: a row with NaN or infinity.
        """
        start = 0
        for part in self.x if self.on_disk else [self.x]:
            for first in range(0, len(part), size):
                rows = part[first : first + size]
                _check_finite(rows, range(start, start + len(rows)))
                yield start, rows
                start += len(rows)


def ahead(items):
    """Yield the items of an iterable, the next one made in a thread while this one is in use."""
    with ThreadPoolExecutor(1) as pool:
        items = iter(items)
        end = object()
        following = pool.submit(next, items, end)
        while (item := following.result()) is not end:
            following = pool.submit(next, items, end)
            yield item


def _check_finite(rows, positions):
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"x has {np.count_nonzero(~finite)} rows with NaN or infinity, the first is row "
            f"{positions[int(np.argmin(finite))]}"
        )


def members_by_cluster(labels, k):
    """Split row positions by cluster, each in ascending order.

    Args:
        labels: (n,) integer cluster of each row, in 0..k-1.
        k: number of clusters.

    Returns:
        List of k int64 arrays.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or (labels.size and not 0 <= labels.min() <= labels.max() < k):
        raise ValueError(f"labels must be a vector of integers in 0..{k - 1}")
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.cumsum(np.bincount(labels, minlength=k))[:-1])


def take_members(x, members):
    """Rows of clusters, read in the order of the file: (rows, list of where each cluster's members stand in them).

    Args:
        x: Rows.
        members: list of row positions of each cluster.
    """
    positions = np.concatenate(members)
    order = np.argsort(positions)
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    return x.take(positions[order]), np.split(places, np.cumsum([len(m) for m in members])[:-1])


def map_clusters(function, x, members, what):
    """Yield function(i, rows) for each cluster i, in order, clusters in parallel and the next ones read ahead.

    Small clusters run one on each thread, a large one on all of them.

    Args:
        function: takes the place of a cluster in `members` and the (n, d) rows of its members.
        x: Rows.
        members: list of (n_i,) row positions.
        what: is being done, for the progress.
    """
    progress = Progress(len(members), what, unit="clusters")
    row_bytes = x.shape[1] * x.x.dtype.itemsize if not x.on_disk else x.shape[1] * 2
    sizes = np.array([len(m) for m in members], dtype=np.int64)
    breaks = np.flatnonzero(np.diff(np.cumsum(sizes * row_bytes) // BYTES_AT_ONCE)) + 1
    large = np.flatnonzero(sizes >= LARGE)
    breaks = np.unique(np.concatenate([[0, len(members)], breaks, large, large + 1]))
    groups = list(pairwise(breaks))

    def read(group):
        return group, *take_members(x, members[slice(*group)])

    with ThreadPoolExecutor(threads(), initializer=threads) as pool:
        for group, rows, places in ahead(map(read, groups)):
            numbers, parts = range(*group), (rows[inside] for inside in places)
            if len(numbers) == 1:
                yield function(numbers[0], next(parts))
            else:
                with one_blas_thread():
                    yield from list(pool.map(function, numbers, parts))
            progress.update(len(numbers))
    progress.close()


def unit_rows(x):
    """Scale each row of x (n, d) to unit L2 norm in its own dtype; zero rows stay zero."""
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norm > 0, norm, 1)
