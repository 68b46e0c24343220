"""Spherical k-means over activations (paper section 3.2; DESIGN step 2)."""

import logging
import warnings
from dataclasses import dataclass

import numpy as np

from coincide.progress import Progress
from coincide.rows import Rows, unit_rows

log = logging.getLogger(__name__)

ROWS_PER_BLOCK = 2048  # rows compared with all centroids at once
IN_MEMORY_AT_MOST = 8 * 2**30  # bytes of float32 rows for which "auto" takes faiss
REPAIR_ROUNDS = 10
SAME = 1e-6  # a row this close to its centroid is not worth a cluster of its own
STALLED = 1e-7  # gain in mean similarity below which another iteration is not worth it


@dataclass(frozen=True)
class Clustering:
    """Result of `spherical_kmeans`.

    Attributes:
        centroids: (K, d) float32, unit rows.
        labels: (n,) int32, the centroid with the largest dot product; ties: lowest index.
        similarity: (n,) float32, cosine of each row with its centroid.
    """

    centroids: np.ndarray
    labels: np.ndarray
    similarity: np.ndarray


def spherical_kmeans(x, k, *, iterations=50, seed=0, backend="auto"):
    """Cluster rows on the unit sphere: assign by the largest dot product, centroids are normalised sums.

    A cluster that is left empty gets the row that is farthest from its own centroid. Where x has fewer distinct
    rows than k, clusters stay empty: they are removed and a warning says how many are left.

    Args:
        x: (n, d) float16 or float32 array, an iterable of row blocks, or activations on disk
            (`coincide.storage.Activations`). Rows are scaled to unit norm.
        k: number of clusters, 1 <= k <= n.
        iterations: Lloyd iterations at most.
        seed: of the initial rows.
        backend: "faiss" (CPU, rows in memory as float32), "stream" (CPU, a block of rows at a time,
            ends early when the objective stalls), "cuml" (GPU), or "auto": cuml where a CUDA device
            and cuml are at hand, else faiss up to 8 GiB of float32 rows, else stream.

    Returns:
        Clustering.

    Raises:
        ValueError: k outside 1..n, unknown backend, wrong shape, NaN or infinity.
        ImportError: the backend's package is not installed.

    Source: Lee, Li, Hwang (EMNLP 2024), section 3.2; Dhillon and Modha (2001) for the algorithm.

    >>> import numpy as np
    >>> sorted(spherical_kmeans(np.eye(2, dtype=np.float32), 2).labels.tolist())
    [0, 1]
    """
    rows = Rows(x)
    n, d = rows.shape
    if not 1 <= k <= n:
        raise ValueError(f"k must be in 1..{n}, the number of rows; got {k}")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1; got {iterations}")
    if backend == "auto":
        backend = "cuml" if _cuml_is_usable() else "faiss" if 4 * n * d <= IN_MEMORY_AT_MOST else "stream"
    if backend not in BACKENDS:
        raise ValueError(f"backend must be auto, {', '.join(BACKENDS)}; got {backend!r}")
    log.info("k-means: %d rows of %d numbers, %d clusters, backend %s", n, d, k, backend)
    seeds = np.sort(np.random.default_rng(seed).choice(n, size=k, replace=False))
    centroids = BACKENDS[backend](rows, unit_rows(rows.take(seeds).astype(np.float32)), iterations, seed)
    return _finish(rows, unit_rows(np.asarray(centroids, dtype=np.float32)))


def assign(rows, centroids):
    """Label and similarity of each row: the centroid with the largest dot product; ties: lowest index.

    Args:
        rows: Rows; they are scaled to unit norm.
        centroids: (K, d) float32 unit rows.

    Returns:
        (n,) int32 labels and (n,) float32 similarities.
    """
    labels, similarity = np.empty(len(rows), np.int32), np.empty(len(rows), np.float32)
    for part, _, own, best in _assigned_blocks(rows, centroids):
        labels[part], similarity[part] = own, best
    return labels, similarity


def _assigned_blocks(rows, centroids):
    """Yield (slice of the rows, unit rows, labels, similarities) block by block."""
    for part, block in _unit_blocks(rows):
        scores = block @ centroids.T
        yield part, block, scores.argmax(axis=1), scores.max(axis=1)


def _unit_blocks(rows):
    """Yield (slice of the rows, unit rows) block by block."""
    for start, block in rows.blocks(ROWS_PER_BLOCK):
        yield slice(start, start + len(block)), unit_rows(block.astype(np.float32))


def _in_memory(rows):
    x = np.empty(rows.shape, np.float32)
    for part, block in _unit_blocks(rows):
        x[part] = block
    return x


def _faiss(rows, seeds, iterations, seed):
    import faiss

    kmeans = faiss.Kmeans(
        rows.shape[1],
        len(seeds),
        niter=iterations,
        spherical=True,
        seed=seed,
        # faiss samples above 256 rows a centroid and warns below 39; both would change the method
        max_points_per_centroid=len(rows),
        min_points_per_centroid=1,
    )
    kmeans.train(_in_memory(rows), init_centroids=seeds)
    return kmeans.centroids


def _stream(rows, seeds, iterations, seed):
    from scipy.sparse import csr_array

    centroids, k, objective = seeds, len(seeds), -np.inf
    progress = Progress(iterations * len(rows), "k-means", unit="rows")
    labels, similarity = np.empty(len(rows), np.int32), np.empty(len(rows), np.float32)
    for iteration in range(iterations):
        # float64 sums: the centroids, rounded to float32, do not depend on where blocks begin
        sums = np.zeros((k, rows.shape[1]))
        for part, block, own, best in _assigned_blocks(rows, centroids):
            members = csr_array((np.ones(len(block)), (own, np.arange(len(block)))), shape=(k, len(block)))
            sums += members @ block
            labels[part], similarity[part] = own, best
            progress.update(len(block))
        centroids = unit_rows(sums).astype(np.float32)
        changed = _reseed(rows, centroids, labels, similarity)
        mean = similarity.mean(dtype=np.float64)
        log.info("k-means: iteration %d, mean similarity %.7f, %d re-seeded", iteration + 1, mean, changed)
        if mean - objective <= STALLED and not changed:
            log.info("k-means: the objective stalls, ending after %d of %d iterations", iteration + 1, iterations)
            break
        objective = mean
    progress.close()
    return centroids


def _reseed(rows, centroids, labels, similarity):
    """Give each empty cluster a row of its own, split off from the cluster that serves it worst.

    Returns:
        number of centroids changed, in place; 0 where no row differs from its centroid.
    """
    empty = np.flatnonzero(np.bincount(labels, minlength=len(centroids)) == 0)
    if not len(empty):
        return 0
    worst = np.argsort(similarity, kind="stable")[: 4 * len(empty)]
    worst = worst[similarity[worst] < 1 - SAME]
    found = unit_rows(rows.take(worst).astype(np.float32))
    _, first = np.unique(found, axis=0, return_index=True)  # copies of one row would be one cluster again
    found = found[np.sort(first)][: len(empty)]
    centroids[empty[: len(found)]] = found
    return len(found)


def _cuml(rows, seeds, iterations, seed):
    try:
        import cupy
        from cuml.cluster import KMeans
    except ImportError as error:
        raise ImportError(
            "clustering backend 'cuml' needs the packages cuml and cupy; install them or set the backend to faiss"
        ) from error
    # cuML knows L2 alone. On unit rows the nearest unit centroid is the one with the largest dot
    # product, so one round at a time with centroids put back on the sphere is spherical k-means.
    data, centroids = cupy.asarray(_in_memory(rows)), cupy.asarray(seeds)
    for _ in range(iterations):
        kmeans = KMeans(n_clusters=len(seeds), init=centroids, n_init=1, max_iter=1, random_state=seed)
        kmeans.fit(data)
        centroids = cupy.asarray(kmeans.cluster_centers_)
        centroids /= cupy.linalg.norm(centroids, axis=1, keepdims=True)
    return cupy.asnumpy(centroids)


BACKENDS = {"faiss": _faiss, "stream": _stream, "cuml": _cuml}


def _cuml_is_usable():
    from importlib.util import find_spec

    if find_spec("cuml") is None or find_spec("cupy") is None:
        return False
    import cupy

    try:
        return cupy.cuda.runtime.getDeviceCount() > 0
    except cupy.cuda.runtime.CUDARuntimeError:
        return False


def _finish(rows, centroids):
    labels, similarity = assign(rows, centroids)
    for _ in range(REPAIR_ROUNDS):
        if not (changed := _reseed(rows, centroids, labels, similarity)):
            break
        log.info("k-means: re-seeded %d empty clusters", changed)
        labels, similarity = assign(rows, centroids)
    sizes = np.bincount(labels, minlength=len(centroids))
    filled = np.flatnonzero(sizes)
    if len(filled) < len(sizes):
        warnings.warn(
            f"{len(sizes) - len(filled)} of {len(sizes)} clusters are empty and were removed: "
            "x has fewer distinct rows than k",
            stacklevel=3,
        )
        labels = np.searchsorted(filled, labels).astype(np.int32)
    return Clustering(centroids[filled], labels, similarity)
