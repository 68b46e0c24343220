"""Spherical k-means over activations (paper section 3.2; DESIGN step 2)."""

import logging
import warnings
from dataclasses import dataclass

import numpy as np

from coincide.rows import as_matrix, unit_rows

log = logging.getLogger(__name__)

ROWS_PER_BLOCK = 16384  # rows compared with all centroids at once
REPAIR_ROUNDS = 10


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

    A cluster that ends empty is re-seeded by splitting the largest one. Where x has fewer distinct
    rows than k, clusters stay empty: they are removed and a warning says how many are left.

    Args:
        x: (n, d) float16 or float32 array, or an iterable of row blocks. Rows are scaled to unit norm.
        k: number of clusters, 1 <= k <= n.
        iterations: Lloyd iterations.
        seed: of the initial rows.
        backend: "faiss" (CPU), "cuml" (GPU), or "auto": cuml where a CUDA device and cuml are at
            hand, else faiss.

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
    x = unit_rows(as_matrix(x).astype(np.float32))
    if not 1 <= k <= len(x):
        raise ValueError(f"k must be in 1..{len(x)}, the number of rows; got {k}")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1; got {iterations}")
    if backend == "auto":
        backend = "cuml" if _cuml_is_usable() else "faiss"
    if backend not in BACKENDS:
        raise ValueError(f"backend must be auto, {' or '.join(BACKENDS)}; got {backend!r}")
    log.info("k-means: %d rows of %d numbers, %d clusters, backend %s", *x.shape, k, backend)
    seeds = np.random.default_rng(seed).choice(len(x), size=k, replace=False)
    centroids = BACKENDS[backend](x, x[np.sort(seeds)], iterations, seed)
    return _finish(x, unit_rows(centroids.astype(np.float32)))


def assign(x, centroids):
    """Label and similarity of each row: the centroid with the largest dot product; ties: lowest index.

    Args:
        x: (n, d) float32 unit rows.
        centroids: (K, d) float32 unit rows.

    Returns:
        (n,) int32 labels and (n,) float32 similarities.
    """
    labels, similarity = np.empty(len(x), np.int32), np.empty(len(x), np.float32)
    for start in range(0, len(x), ROWS_PER_BLOCK):
        part = slice(start, start + ROWS_PER_BLOCK)
        scores = x[part] @ centroids.T
        labels[part] = scores.argmax(axis=1)
        similarity[part] = scores.max(axis=1)
    return labels, similarity


def _faiss(x, seeds, iterations, seed):
    import faiss

    kmeans = faiss.Kmeans(
        x.shape[1],
        len(seeds),
        niter=iterations,
        spherical=True,
        seed=seed,
        # faiss samples above 256 rows a centroid and warns below 39; both would change the method
        max_points_per_centroid=len(x),
        min_points_per_centroid=1,
    )
    kmeans.train(x, init_centroids=seeds)
    return kmeans.centroids


def _cuml(x, seeds, iterations, seed):
    try:
        import cupy
        from cuml.cluster import KMeans
    except ImportError as error:
        raise ImportError(
            "clustering backend 'cuml' needs the packages cuml and cupy; install them or set the backend to faiss"
        ) from error
    # cuML knows L2 alone. On unit rows the nearest unit centroid is the one with the largest dot
    # product, so one round at a time with centroids put back on the sphere is spherical k-means.
    data, centroids = cupy.asarray(x), cupy.asarray(seeds)
    for _ in range(iterations):
        kmeans = KMeans(n_clusters=len(seeds), init=centroids, n_init=1, max_iter=1, random_state=seed)
        kmeans.fit(data)
        centroids = cupy.asarray(kmeans.cluster_centers_)
        centroids /= cupy.linalg.norm(centroids, axis=1, keepdims=True)
    return cupy.asnumpy(centroids)


BACKENDS = {"faiss": _faiss, "cuml": _cuml}


def _cuml_is_usable():
    from importlib.util import find_spec

    if find_spec("cuml") is None or find_spec("cupy") is None:
        return False
    import cupy

    try:
        return cupy.cuda.runtime.getDeviceCount() > 0
    except cupy.cuda.runtime.CUDARuntimeError:
        return False


def _finish(x, centroids):
    labels, similarity = assign(x, centroids)
    sizes = np.bincount(labels, minlength=len(centroids))
    for _ in range(REPAIR_ROUNDS):
        empty = np.flatnonzero(sizes == 0)
        if not len(empty):
            break
        for cluster in empty:
            # The member that the largest cluster serves worst becomes a centroid of its own.
            members = np.flatnonzero(labels == sizes.argmax())
            worst = members[similarity[members].argmin()]
            centroids[cluster] = x[worst]
            sizes[labels[worst]] -= 1
            sizes[cluster] += 1
            labels[worst], similarity[worst] = cluster, 1.0
        log.info("k-means: re-seeded %d empty clusters", len(empty))
        labels, similarity = assign(x, centroids)
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
