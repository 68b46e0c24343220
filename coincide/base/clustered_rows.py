"""Rows with their clusters: which rows belong to which cluster, and functions evaluated per cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coincide.base.progress import Progress
from coincide.base.rows import RowData, Rows, ahead
from coincide.base.threads import one_blas_thread, threads

BYTES_AT_ONCE = 2**28  # rows read for clusters that are processed at the same time
LARGE = 2048  # a cluster with this many members is processed on all threads


class BatchedFunction(Protocol):
    """A function of a cluster that can also process many clusters at once on a device."""

    def __call__(self, cluster: int, rows: NDArray) -> Any:
        """Result for one cluster, on the CPU, from the (n, d) rows of its members."""
        ...

    def fits(self, n_clusters: int, n_members: int, dimension: int) -> bool:
        """Whether a batch of clusters with at most n_members members fits on the device."""
        ...

    def batch(self, clusters: list[int], rows: NDArray, positions: list[NDArray], device: str) -> Iterable[Any]:
        """One result per cluster; the members of clusters[i] are rows[positions[i]]."""
        ...


class ClusteredRows:
    """Rows with a cluster each. Members are determined once; rows are read a few clusters at a time.

    Args:
        x: (n, d) rows, as `Rows` takes them, or `Rows`.
        labels: (n,) integer cluster of each row, in 0..n_clusters-1.
        n_clusters: number of clusters K; default: the largest label plus one.

    Attributes:
        rows: `Rows`.
        labels: (n,) clusters.
        members: list of K int64 arrays: positions of each cluster's rows, ascending.
        sizes: (K,) int64, number of members of each cluster.

    Raises:
        ValueError: labels that do not match the rows, or are not in 0..n_clusters-1.

    >>> clustered = ClusteredRows(np.eye(3), [1, 0, 1])
    >>> [members.tolist() for members in clustered.members]
    [[1], [0, 2]]
    >>> clustered.map(lambda cluster, rows: rows.sum(axis=0).tolist())
    [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]
    """

    def __init__(self, x: RowData | Rows, labels: ArrayLike, n_clusters: int | None = None):
        self.rows = x if isinstance(x, Rows) else Rows(x)
        self.labels = np.asarray(labels)
        if self.labels.shape != (len(self.rows),):
            raise ValueError(f"labels has shape {self.labels.shape}, x has {len(self.rows)} rows")
        self.members = members_by_cluster(self.labels, n_clusters)
        self.sizes = np.array([len(members) for members in self.members], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.members)

    def group(self, index: int, count: int) -> NDArray:
        """Clusters of one of `count` groups of about equal work, ascending.

        Work is measured in pairs of members. The groups 0..count-1 hold every cluster exactly once.
        """
        work = np.cumsum(self.sizes.astype(np.float64) ** 2)
        ends = np.searchsorted(work, work[-1] * np.arange(1, count) / count)
        return np.split(np.arange(len(self)), ends)[index]

    def map(
        self,
        function: Callable[[int, NDArray], Any] | BatchedFunction,
        clusters: Sequence[int] | NDArray | None = None,
        *,
        device: str = "cpu",
        description: str = "clusters",
    ) -> list:
        """Evaluate a function on every cluster.

        On "cpu", function(cluster, rows) runs on threads: small clusters one per thread, a large cluster
        on all of them. On another device, function.batch processes many clusters of similar size at
        once; a cluster that does not fit on the device is processed on the CPU. Rows are read ahead,
        in the order of the file.

        Args:
            function: takes the number of a cluster and the (n, d) rows of its members; a
                `BatchedFunction` where device is not "cpu".
            clusters: (m,) clusters; default: all.
            device: "cpu" for threads, or a torch device for batches ("cpu:0" processes batches on the CPU).
            description: what is computed, for the progress.

        Returns:
            list of m results, in the order of `clusters`.

        Raises:
            ValueError: a row has NaN or infinity.
        """
        chosen = [int(c) for c in (range(len(self)) if clusters is None else clusters)]
        with Progress(len(chosen), description, unit="clusters") as progress:
            if device == "cpu":
                results = self._map_on_threads(function, chosen, progress)
            else:
                results = self._map_in_batches(function, chosen, progress, device)
        return results

    def _map_on_threads(self, function, clusters, progress):
        results = []
        with ThreadPoolExecutor(threads(), initializer=threads) as pool:
            for group, rows, positions in ahead(map(self._read, self._groups(clusters))):
                if len(group) == 1:
                    results.append(function(group[0], rows[positions[0]]))
                else:
                    with one_blas_thread():
                        results += pool.map(function, group, (rows[members] for members in positions))
                progress.update(len(group))
        return results

    def _map_in_batches(self, function, clusters, progress, device):
        results = {}
        for batch, rows, positions in ahead(map(self._read, self._batches(clusters, function.fits))):
            if function.fits(len(batch), len(positions[0]), self.rows.shape[1]):
                results |= zip(batch, function.batch(batch, rows, positions, device))
            else:
                results[batch[0]] = function(batch[0], rows[positions[0]])
            progress.update(len(batch))
        return [results[cluster] for cluster in clusters]

    def _groups(self, clusters):
        """Consecutive clusters with about BYTES_AT_ONCE of rows; a large cluster is a group by itself."""
        sizes = self.sizes[clusters]
        ends = np.flatnonzero(np.diff(np.cumsum(sizes * self.rows.row_bytes) // BYTES_AT_ONCE)) + 1
        large = np.flatnonzero(sizes >= LARGE)
        bounds = np.unique(np.concatenate([[0, len(clusters)], ends, large, large + 1]))
        return [clusters[first:last] for first, last in pairwise(bounds)]

    def _batches(self, clusters, fits):
        """Batches of clusters that fit on the device, the largest clusters first.

        A cluster that does not fit even as a single cluster is a batch by itself.
        """
        batch = []
        for cluster in sorted(clusters, key=lambda cluster: -self.sizes[cluster]):
            if batch and not fits(len(batch) + 1, int(self.sizes[batch[0]]), self.rows.shape[1]):
                yield batch
                batch = []
            batch.append(cluster)
        if batch:
            yield batch

    def _read(self, clusters):
        """(clusters, rows of all their members, positions of each cluster's members in these rows)."""
        indices = np.concatenate([self.members[cluster] for cluster in clusters])
        order = np.argsort(indices)  # the order of the file
        positions = np.empty(len(order), np.int64)
        positions[order] = np.arange(len(order))
        return clusters, self.rows.take(indices[order]), np.split(positions, np.cumsum(self.sizes[clusters])[:-1])


def members_by_cluster(labels: ArrayLike, n_clusters: int | None = None) -> list[NDArray[np.int64]]:
    """Positions of the rows of each cluster, ascending.

    Args:
        labels: (n,) integer cluster of each row, in 0..n_clusters-1.
        n_clusters: number of clusters K; default: the largest label plus one.

    Returns:
        list of K int64 arrays.

    Raises:
        ValueError: labels is not a vector, or a label is outside 0..n_clusters-1.
    """
    labels = np.asarray(labels)
    if n_clusters is None:
        n_clusters = int(labels.max(initial=-1)) + 1
    if labels.ndim != 1 or (labels.size and not 0 <= labels.min() <= labels.max() < n_clusters):
        raise ValueError(f"labels must be a vector of integers in 0..{n_clusters - 1}")
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.cumsum(np.bincount(labels, minlength=n_clusters))[:-1])
