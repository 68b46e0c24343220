"""Spherical k-means over activations (paper section 3.2; DESIGN step 2)."""

import logging
import os
import time
import warnings
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from coincide.base.devices import cuda_devices
from coincide.base.files import replacing
from coincide.base.progress import Progress
from coincide.base.rows import Rows, unit_rows
from coincide.clustering.init import first_centroids
from coincide.clustering.lloyd import ROWS_PER_BATCH, Lloyd

log = logging.getLogger(__name__)

IN_MEMORY_AT_MOST = 8 * 2**30  # bytes of rows for which "auto" takes memory
REPAIR_ROUNDS = 10
SAME = 1e-6  # a row this close to its centroid is not worth a cluster of its own
CUML_BUFFER = 2**16  # rows that cuML takes to the device at once, where they do not fit it
STALLED = 1e-7  # gain in mean similarity below which another iteration is not worth it


@dataclass(frozen=True)
class Clustering:
    """Result of `spherical_kmeans`.

    Attributes:
        centroids: (K, d) float32, unit rows.
        labels: (n,) int32, the centroid with the largest dot product; ties: lowest index.
        similarity: (n,) float32, cosine of each row with its centroid.
        objective: mean similarity with the moved centroids after each iteration; it never falls.
            Empty where the backend's own iterations do not report it.
    """

    centroids: np.ndarray
    labels: np.ndarray
    similarity: np.ndarray
    objective: tuple = ()


def spherical_kmeans(x, k, *, iterations=50, seed=0, backend="auto", fit_rows=None, stalled=STALLED):
    """Cluster rows on the unit sphere: assign by the largest dot product, centroids are normalised sums.

    Begins with centroids drawn by k-means++ and improved on a sample. A cluster that is left empty gets
    the row that its centroid serves worst. Where x has fewer distinct rows than k, clusters stay
    empty: they are removed and a warning says how many are left. Zero rows belong to cluster 0 with
    similarity 0. The same seed gives the same labels for any number of threads, for rows in memory
    and on disk, however they are split, with the backends memory, stream and torch; theirs are the labels
    of plain float32 Lloyd iterations with close calls decided in float64.

    Args:
        x: (n, d) float16 or float32 array, an iterable of row blocks, or activations on disk
            (`coincide.base.activation_store.Activations`). Rows are scaled to unit norm.
        k: number of clusters, 1 <= k <= n.
        iterations: Lloyd iterations at most.
        seed: of the first centroids.
        backend: "memory" (CPU, 3 bytes a number of a float16 row), "stream" (CPU, rows on disk are read at
            each iteration), "faiss" (CPU, faiss.Kmeans, 4 bytes a number), "torch" (all GPUs that are visible,
            in half precision, close calls decided in float64: the labels of memory; 2 bytes a number, or
            streamed), "cuml" (GPUs, 4 bytes a number), or "auto": with a CUDA device cuml where it is installed
            and the rows fit, else torch; without one memory up to 8 GiB, else stream.
        fit_rows: fit on a sample of this many rows and assign all; None: fit on all.
        stalled: gain in mean similarity at or below which iterations end early; 0 goes on until no
            row changes its cluster. Not used by faiss.

    Returns:
        Clustering.

    Raises:
        ValueError: k outside 1..n, unknown backend, wrong shape, NaN or infinity, nothing but zero rows.
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
    if fit_rows is not None and not k <= fit_rows <= n:
        raise ValueError(f"fit_rows must be in k..n, {k}..{n}; got {fit_rows}")
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"backend must be auto, {', '.join(BACKENDS)}; got {backend!r}")
    fitted = rows
    if fit_rows is not None and fit_rows < n:
        fitted = Rows(rows.take(np.sort(np.random.default_rng(seed).choice(n, size=fit_rows, replace=False))))
    if backend == "auto":
        backend = _usual_backend(fitted, k)
    log.info("k-means: %d rows of %d numbers, %d clusters, backend %s", len(fitted), d, k, backend)
    start = time.monotonic()
    seeds = first_centroids(fitted, k, seed)
    log.info("k-means: first centroids after %.1f s", time.monotonic() - start)
    state, objective = BACKENDS[backend](fitted, seeds, iterations, seed, stalled)
    if fitted is not rows:
        state = Lloyd(rows, state.centroids)
        _say_loss(state, objective, len(fitted))
    return _finish(state, objective)


def _iterate(state, iterations, stalled):
    rows, objective = state.rows, []
    progress = Progress(iterations * len(rows), "k-means", unit="rows")
    for i in range(iterations):
        changed = state.assign(progress)
        progress.update((i + 1) * len(rows) - progress.done)  # rows whose label needed no look
        objective.append(state.update())
        repaired = _repair(state)
        log.info(
            "k-means: iteration %d, mean similarity %.7f, %d rows changed cluster, %d clusters re-seeded, work %.2f",
            len(objective), objective[-1], changed, repaired, state.work,
        )  # fmt: skip
        gain = objective[-1] - objective[-2] if len(objective) > 1 else np.inf
        if not repaired and (not changed or gain <= stalled):
            if len(objective) < iterations:
                log.info(
                    "k-means: ends after %d of %d iterations: %s",
                    len(objective),
                    iterations,
                    "no row changes its cluster" if not changed else f"the objective gains {gain:.1g}",
                )
            break
    progress.close()
    return state, tuple(objective)


def _memory(rows, seeds, iterations, seed, stalled):
    return _iterate(Lloyd(rows.in_memory(), seeds, keep=True), iterations, stalled)


def _stream(rows, seeds, iterations, seed, stalled):
    return _iterate(Lloyd(rows, seeds, keep=False), iterations, stalled)


def _torch(rows, seeds, iterations, seed, stalled):
    from coincide.clustering.lloyd_gpu import DeviceLloyd

    return _iterate(DeviceLloyd(rows, seeds, cuda_devices() or ["cpu"]), iterations, stalled)


def _repair(state):
    """Give each empty cluster a row of its own, split off from the cluster that serves it worst.

    Returns:
        number of centroids changed; 0 where no row differs from its centroid.
    """
    empty = np.flatnonzero(state.sizes == 0)
    if not len(empty):
        return 0
    similarity = state.similarity()
    similarity[state.labels < 0] = 1  # a zero row is no centroid
    worst = np.argsort(similarity, kind="stable")[: 4 * len(empty)]
    worst = worst[similarity[worst] < 1 - SAME]
    found = unit_rows(state.rows.take(worst).astype(np.float32))
    _, first = np.unique(found, axis=0, return_index=True)  # copies of one row would be one cluster again
    found = found[np.sort(first)][: len(empty)]
    state.replace(empty[: len(found)], found)
    return len(found)


def _say_loss(state, objective, fitted):
    state.assign()
    before = float(state.similarity().mean(dtype=np.float64))
    after = state.update()
    log.info(
        "k-means: fitted on %d of %d rows: mean similarity %s on these, %.7f on all; "
        "one iteration over all rows gains %.1e, the least that fitting on a sample costs",
        fitted, len(state.rows), f"{objective[-1]:.7f}" if objective else "not reported", before, after - before,
    )  # fmt: skip


def _faiss(rows, seeds, iterations, seed, stalled):
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
    kmeans.train(_unit_rows_in_memory(rows), init_centroids=seeds)
    return Lloyd(rows, unit_rows(kmeans.centroids)), tuple(float(o) / len(rows) for o in kmeans.obj)


def _cuml(rows, seeds, iterations, seed, stalled):
    # cuML knows L2 alone. On unit rows the nearest unit centroid is the one with the largest dot
    # product, so one round at a time with centroids put back on the sphere is spherical k-means.
    with _cuml_rounds(rows, len(seeds), seed) as fitted:
        centroids, objective = seeds, []
        for _ in range(iterations):
            found, inertia = fitted(centroids)
            centroids = unit_rows(found)
            # mean |x - c|² = 2 - 2 · mean similarity with the centroids that the round began with
            objective.append(1 - inertia / (2 * len(rows)))
            log.info("k-means: iteration %d, mean similarity %.7f", len(objective), objective[-1])
            if len(objective) > 1 and objective[-1] - objective[-2] <= stalled:
                log.info("k-means: the objective stalls, ending after %d of %d iterations", len(objective), iterations)
                break
    return Lloyd(rows, centroids), tuple(objective)


@contextmanager
def _cuml_rounds(rows, k, seed):
    """A function centroids -> (centroids after one L2 iteration, sum of squared distances before it), by cuML.

    On one GPU; on all that are visible, through dask, where dask-cuda is installed.
    """
    try:
        import cupy
        from cuml.cluster import KMeans
    except ImportError as error:
        raise ImportError(
            "clustering backend 'cuml' needs the packages cuml and cupy; install them, or set the backend to torch"
        ) from error
    _check_memory(rows)
    # seeds are given: cuML would fit ten times, and copy all rows to draw seeds of its own
    options = {"n_clusters": k, "n_init": 1, "max_iter": 1, "random_state": seed}
    devices = cuda_devices()
    with ExitStack() as stack:
        if len(devices) > 1 and find_spec("dask_cuda"):
            import dask.array
            from cuml.dask.cluster import KMeans
            from dask.distributed import Client, wait
            from dask_cuda import LocalCUDACluster

            options["client"] = client = stack.enter_context(Client(stack.enter_context(LocalCUDACluster())))
            chunks = (-(-len(rows) // len(devices)), rows.shape[1])
            data = dask.array.from_array(_unit_rows_in_memory(rows), chunks=chunks).map_blocks(cupy.asarray)
            wait(data := client.persist(data))
        elif _float32_fits(rows, k):
            data = cupy.asarray(_unit_rows_in_memory(rows))
        else:
            data, options["device_buffer_samples"] = _unit_rows_in_memory(rows), CUML_BUFFER

        def fitted(centroids):
            kmeans = KMeans(init=cupy.asarray(centroids), **options)
            kmeans.fit(data)
            return cupy.asnumpy(kmeans.cluster_centers_), float(kmeans.inertia_)

        yield fitted


def _check_memory(rows):
    """Refuse rows that cuML cannot be given: it takes float32, which they are made into first."""
    needed, there = 4 * len(rows) * rows.shape[1], os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise MemoryError(
            f"clustering backend 'cuml' needs {needed / 2**30:.0f} GiB for the rows in float32, "
            f"{there / 2**30:.0f} GiB are free: take backend torch, which leaves them float16 and streams them, "
            "or set clustering.fit_rows"
        )


def _float32_fits(rows, k):
    import torch

    from coincide.clustering.lloyd_gpu import fits

    return fits(torch.device("cuda"), *rows.shape, k, row_bytes=4)


BACKENDS = {"memory": _memory, "stream": _stream, "faiss": _faiss, "torch": _torch, "cuml": _cuml}


def _unit_rows_in_memory(rows):
    return np.concatenate([unit_rows(block.astype(np.float32)) for _, block in rows.blocks(ROWS_PER_BATCH)])


def _usual_backend(rows, k):
    if cuda_devices():
        installed = find_spec("cuml") is not None and find_spec("cupy") is not None
        return "cuml" if installed and _float32_fits(rows, k) else "torch"
    return "memory" if 3 * len(rows) * rows.shape[1] <= IN_MEMORY_AT_MOST else "stream"


def _finish(state, objective):
    state.assign()
    for _ in range(REPAIR_ROUNDS):
        if not (changed := _repair(state)):
            break
        log.info("k-means: re-seeded %d empty clusters", changed)
        state.assign()
    filled, labels = np.flatnonzero(state.sizes), state.labels
    if not len(filled):
        raise ValueError("every row of x is zero: there is nothing to cluster")
    if len(filled) < len(state.sizes):
        warnings.warn(
            f"{len(state.sizes) - len(filled)} of {len(state.sizes)} clusters are empty and were removed: "
            "x has fewer distinct rows than k",
            stacklevel=3,
        )
    similarity = state.similarity()
    labels = np.searchsorted(filled, labels).astype(np.int32)  # zero rows, labelled -1, become 0
    return Clustering(state.centroids[filled], labels, similarity, objective)


def clusters_table(sample_ids, clustering):
    """sample_id, cluster, similarity."""
    return pd.DataFrame(
        {"sample_id": sample_ids, "cluster": clustering.labels, "similarity": clustering.similarity}
    ).astype({"cluster": "int32", "similarity": "float32"})


def write_centroids(clustering, path):
    """Write cluster, size, centroid (a fixed-size list of float32)."""
    k, d = clustering.centroids.shape
    values = pa.array(np.ascontiguousarray(clustering.centroids, np.float32).ravel())
    table = pa.table(
        {
            "cluster": pa.array(range(k), pa.int32()),
            "size": pa.array(np.bincount(clustering.labels, minlength=k), pa.int64()),
            "centroid": pa.FixedSizeListArray.from_arrays(values, d),
        }
    )
    with replacing(path) as part:
        pq.write_table(table, part)


def read_centroids(path):
    """(K, d) float32 centroids."""
    column = pq.read_table(path, columns=["centroid"])["centroid"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)
