"""Spherical k-means over activations (paper section 3.2; DESIGN step 2)."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd

from coincide.base.devices import cuda_devices
from coincide.base.errors import UserError
from coincide.base.progress import Progress
from coincide.base.rows import Rows, unit_rows
from coincide.clustering.init import INITS
from coincide.clustering.lloyd import ROWS_PER_BATCH, Lloyd

log = logging.getLogger(__name__)

MAX_BYTES_IN_MEMORY = 8 * 2**30  # rows up to this size are held in memory by backend "auto"
MAX_REPAIRS = 10  # attempts to fill clusters that are empty after the last iteration
SAME = 1e-6  # a row whose cosine with its centroid is within this of 1 does not get a cluster to itself
SAMPLES_PER_CLUSTER = 66  # as in the paper, on LLaVA-1.5 (section 4.1)
CUML_BUFFER = 2**16  # rows that cuML copies to the device at once, if not all fit
CUML_BLOCK = 2**13  # rows multiplied with the centroids at once to measure the similarity
STALLED = 1e-7  # gain in mean similarity at or below which another iteration is not worth its time


@dataclass(frozen=True)
class Clustering:
    """Result of `spherical_kmeans`.

    Attributes:
        centroids: (K, d) float32, unit rows.
        labels: (n,) int32, the centroid with the largest dot product; ties: lowest index.
        similarity: (n,) float32, cosine of each row with its centroid.
        objective: mean similarity of the rows with the updated centroids after each iteration; it never
            decreases. With backend cuml, of the rows with the nearest of the updated centroids.
    """

    centroids: np.ndarray
    labels: np.ndarray
    similarity: np.ndarray
    objective: tuple[float, ...] = ()


def recommended_clusters(n: int) -> int:
    """Number of clusters for n samples in the ratio of the paper, at least 1."""
    return max(round(n / SAMPLES_PER_CLUSTER), 1)


def spherical_kmeans(
    x: np.ndarray | Iterable[np.ndarray] | Any,
    k: int,
    *,
    iterations: int = 50,
    seed: int = 0,
    init: str = "random",
    backend: str = "auto",
    fit_rows: int | None = None,
    stalled: float = STALLED,
) -> Clustering:
    """Cluster rows on the unit sphere: assign by the largest dot product, centroids are normalised sums.

    The first centroids are random rows, as in the published code. A cluster that becomes empty gets the row
    with the smallest similarity to its centroid. If x has fewer distinct rows than k, the clusters that
    stay empty are removed, with a warning. Zero rows belong to cluster 0 with similarity 0.

    With the backends memory, stream and torch, the same seed gives the same labels for any number of threads,
    for rows in memory and on disk, and for any split into blocks: the labels of plain float32 Lloyd iterations
    in which close calls are decided in float64.

    Args:
        x: (n, d) float16 or float32 array, an iterable of row blocks, or activations on disk
            (`coincide.base.activation_store.Activations`). Rows are scaled to unit norm.
        k: number of clusters, 1 <= k <= n.
        iterations: maximum number of Lloyd iterations.
        seed: seed of the first centroids.
        init: first centroids: "random" rows, or "k-means++", which gives sparse regions more clusters.
        backend: where and how the iterations run.
            "memory": CPU, rows in memory, 3 bytes per number of a float16 row.
            "stream": CPU, rows on disk are read at each iteration.
            "faiss": CPU, faiss.Kmeans, 4 bytes per number.
            "torch": all visible GPUs, in half precision; 2 bytes per number, or streamed if they do not fit.
            "cuml": GPUs, cuML's KMeans, 4 bytes per number.
            "auto": with a CUDA device, cuml if it is installed and the rows fit, else torch; without one, memory
            for rows of up to 8 GiB, else stream.
        fit_rows: fit the centroids on a random sample of this many rows, then assign all rows; None: fit on all.
        stalled: iterations end early when the mean similarity gains no more than this; at 0 they end when no
            row changes its cluster. Ignored by faiss.

    Returns:
        Clustering.

    Raises:
        ValueError: k outside 1..n, unknown init or backend, wrong shape, NaN or infinity, or only zero rows.
        ImportError: the package of the backend is not installed.
        MemoryError: the rows do not fit in memory for backend cuml.

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
    if init not in INITS:
        raise ValueError(f"init must be {' or '.join(INITS)}; got {init!r}")
    fitted = rows
    if fit_rows is not None and fit_rows < n:
        fitted = Rows(rows.take(np.sort(np.random.default_rng(seed).choice(n, size=fit_rows, replace=False))))
    if backend == "auto":
        backend = _default_backend(fitted, k)
    log.info("k-means: %d rows of %d numbers, %d clusters, backend %s", len(fitted), d, k, backend)
    start = time.monotonic()
    initial = INITS[init](fitted, k, seed)
    log.info("k-means: first centroids (%s) after %.1f s", init, time.monotonic() - start)
    state, objective = BACKENDS[backend](fitted, initial, iterations, seed, stalled)
    if fitted is not rows:
        state = Lloyd(rows, state.centroids)
        _log_cost_of_sampling(state, objective, len(fitted))
    return _assign_all(state, objective)


def assign(x: np.ndarray | Iterable[np.ndarray] | Any, centroids: np.ndarray) -> Clustering:
    """Assign rows to given centroids by the largest dot product; a cluster may stay empty.

    Args:
        x: (n, d) rows, as for `spherical_kmeans`. Zero rows belong to cluster 0 with similarity 0.
        centroids: (K, d) float32, unit rows.

    Raises:
        UserError: rows and centroids have different numbers of columns.
    """
    rows = Rows(x)
    if rows.shape[1] != centroids.shape[1]:
        raise UserError(
            f"the activations have {rows.shape[1]} numbers per sample, the centroids {centroids.shape[1]}: they are "
            "from another reference model or other layers; set clustering.centroids to null, or reference_model as in "
            "that run"
        )
    state = Lloyd(rows, centroids)
    state.assign()
    return Clustering(centroids, np.maximum(state.labels, 0).astype(np.int32), state.similarity())


def _iterate(state, iterations, stalled):
    """Alternate assignment and update of a `Lloyd` or `DeviceLloyd`; return it and the objective per iteration."""
    rows, objective = state.rows, []
    with Progress(iterations * len(rows), "k-means", unit="rows") as progress:
        for i in range(iterations):
            changed = state.assign(progress)
            progress.update((i + 1) * len(rows) - progress.done)  # the rows whose bounds were enough
            objective.append(state.update())
            filled = _fill_empty_clusters(state)
            log.info(
                "k-means: iteration %d, mean similarity %.7f, "
                "%d rows changed cluster, %d clusters re-seeded, work %.2f",
                len(objective), objective[-1], changed, filled, state.work,
            )  # fmt: skip
            gain = objective[-1] - objective[-2] if len(objective) > 1 else np.inf
            if not filled and (not changed or gain <= stalled):
                reason = f"the objective gains {gain:.1g}" if changed else "no row changes its cluster"
                if len(objective) < iterations:
                    log.info("k-means: ends after %d of %d iterations: %s", len(objective), iterations, reason)
                break
    return state, tuple(objective)


# A backend takes (rows, initial centroids, iterations, seed, stalled) and returns a `Lloyd` or `DeviceLloyd` with the
# final centroids, and the objective after each iteration.


def _memory(rows, initial, iterations, seed, stalled):
    return _iterate(Lloyd(rows.in_memory(), initial, keep=True), iterations, stalled)


def _stream(rows, initial, iterations, seed, stalled):
    return _iterate(Lloyd(rows, initial, keep=False), iterations, stalled)


def _torch(rows, initial, iterations, seed, stalled):
    from coincide.clustering.lloyd_gpu import DeviceLloyd

    return _iterate(DeviceLloyd(rows, initial, cuda_devices() or ["cpu"]), iterations, stalled)


def _fill_empty_clusters(state):
    """Make rows with the smallest similarity to their centroids the centroids of empty clusters.

    Returns:
        number of centroids changed; 0 if no cluster is empty, or no row differs from its centroid.
    """
    empty = np.flatnonzero(state.sizes == 0)
    if not len(empty):
        return 0
    similarity = state.similarity()
    similarity[state.labels < 0] = 1  # a zero row cannot be a centroid
    worst = np.argsort(similarity, kind="stable")[: 4 * len(empty)]
    worst = worst[similarity[worst] < 1 - SAME]
    candidates = unit_rows(state.rows.take(worst).astype(np.float32))
    _, first = np.unique(candidates, axis=0, return_index=True)  # two copies of a row cannot both have a cluster
    new = candidates[np.sort(first)][: len(empty)]
    state.replace(empty[: len(new)], new)
    return len(new)


def _log_cost_of_sampling(state, objective, fitted_rows):
    """Log how much one more iteration gains, which runs over all rows and not only over the sample."""
    state.assign()
    before = float(state.similarity().mean(dtype=np.float64))
    after = state.update()
    log.info(
        "k-means: fitted on %d of %d rows: mean similarity %.7f on these, %.7f on all; one iteration over all rows "
        "gains %.1e, so fitting on a sample costs at least that much",
        fitted_rows, len(state.rows), objective[-1], before, after - before,
    )  # fmt: skip


def _faiss(rows, initial, iterations, seed, stalled):
    import faiss

    kmeans = faiss.Kmeans(
        rows.shape[1],
        len(initial),
        niter=iterations,
        spherical=True,
        seed=seed,
        # by default faiss samples above 256 rows per centroid and warns below 39
        max_points_per_centroid=len(rows),
        min_points_per_centroid=1,
    )
    kmeans.train(_unit_rows_in_memory(rows), init_centroids=initial)
    return Lloyd(rows, unit_rows(kmeans.centroids)), tuple(float(o) / len(rows) for o in kmeans.obj)


def _cuml(rows, initial, iterations, seed, stalled):
    # cuML minimises L2 distances. The nearest unit centroid of a unit row is the one with the largest dot product,
    # so single iterations, each followed by scaling the centroids to unit norm, are spherical k-means.
    with _cuml_iteration(rows, len(initial), seed) as iterate:
        centroids, objective = initial, []
        for _ in range(iterations):
            centroids, similarity = iterate(centroids)
            objective.append(similarity)
            log.info("k-means: iteration %d, mean similarity %.7f", len(objective), objective[-1])
            if len(objective) > 1 and objective[-1] - objective[-2] <= stalled:
                log.info("k-means: ends after %d of %d iterations: the objective stalls", len(objective), iterations)
                break
    return Lloyd(rows, centroids), tuple(objective)


@contextmanager
def _cuml_iteration(rows, k, seed):
    """Context with a function centroids -> (unit centroids after one iteration, mean similarity of the rows with them).

    The similarity is that of an assignment to the new centroids. cuML's `inertia_` is not used: whether it belongs to
    the centroids before or after the iteration differs between versions and from scikit-learn.

    It runs on one GPU, or on all visible GPUs through dask if dask-cuda is installed.
    """
    try:
        import cupy
        from cuml.cluster import KMeans
    except ImportError as error:
        raise ImportError(
            "clustering backend 'cuml' needs the packages cuml and cupy; install them, or set the backend to torch"
        ) from error
    _check_memory(rows)
    # with initial centroids one fit is enough, and cuML does not copy all rows to draw others
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

        def best_similarity(block, centroids):
            """(m,) similarity of rows with the nearest of the (K, d) centroids."""
            parts = (cupy.asarray(block[i : i + CUML_BLOCK]) for i in range(0, len(block), CUML_BLOCK))
            return cupy.concatenate([(part @ centroids.T).max(axis=1) for part in parts])

        def mean_similarity(centroids):
            if "client" in options:
                best = data.map_blocks(best_similarity, cupy.asarray(centroids), drop_axis=1, dtype=np.float32)
                return float(best.mean(dtype=np.float64).compute())
            return float(best_similarity(data, cupy.asarray(centroids)).mean(dtype=np.float64))

        def iterate(centroids):
            kmeans = KMeans(init=cupy.asarray(centroids), **options)
            kmeans.fit(data)
            centroids = unit_rows(cupy.asnumpy(kmeans.cluster_centers_))
            return centroids, mean_similarity(centroids)

        yield iterate


def _check_memory(rows):
    """Raise a MemoryError if the float32 rows that cuML needs do not fit in memory."""
    needed = 4 * len(rows) * rows.shape[1]
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > free:
        raise MemoryError(
            f"clustering backend 'cuml' needs {needed / 2**30:.0f} GiB for the rows in float32, but "
            f"{free / 2**30:.0f} GiB are free: use backend torch, which keeps them in float16 and streams them, "
            "or set clustering.fit_rows"
        )


def _float32_fits(rows, k):
    import torch

    from coincide.clustering.lloyd_gpu import fits

    return fits(torch.device("cuda"), *rows.shape, k, row_bytes=4)


BACKENDS = {"memory": _memory, "stream": _stream, "faiss": _faiss, "torch": _torch, "cuml": _cuml}


def _unit_rows_in_memory(rows):
    return np.concatenate([unit_rows(block.astype(np.float32)) for _, block in rows.blocks(ROWS_PER_BATCH)])


def _default_backend(rows, k):
    if cuda_devices():
        installed = find_spec("cuml") is not None and find_spec("cupy") is not None
        return "cuml" if installed and _float32_fits(rows, k) else "torch"
    return "memory" if 3 * len(rows) * rows.shape[1] <= MAX_BYTES_IN_MEMORY else "stream"


def _assign_all(state, objective):
    """Assign all rows to the final centroids and make the result; empty clusters are filled or removed."""
    state.assign()
    for _ in range(MAX_REPAIRS):
        filled = _fill_empty_clusters(state)
        if not filled:
            break
        log.info("k-means: re-seeded %d empty clusters", filled)
        state.assign()
    kept = np.flatnonzero(state.sizes)
    k = len(state.sizes)
    if not len(kept):
        raise ValueError("every row of x is zero: there is nothing to cluster")
    if len(kept) < k:
        warnings.warn(
            f"{k - len(kept)} of {k} clusters are empty and were removed: x has fewer distinct rows than k",
            stacklevel=3,  # the caller of spherical_kmeans
        )
    similarity = state.similarity()
    labels = np.searchsorted(kept, state.labels).astype(np.int32)  # zero rows, labelled -1, become 0
    return Clustering(state.centroids[kept], labels, similarity, objective)


def clusters_table(sample_ids: np.ndarray, clustering: Clustering) -> pd.DataFrame:
    """Table with one row per sample: sample_id, cluster (int32), similarity (float32)."""
    return pd.DataFrame(
        {"sample_id": sample_ids, "cluster": clustering.labels, "similarity": clustering.similarity}
    ).astype({"cluster": "int32", "similarity": "float32"})
