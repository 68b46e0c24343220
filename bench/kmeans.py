"""Time spherical k-means against other implementations, in one run on the same data.

    .venv/bin/python bench/kmeans.py [--shapes 1 2 3 4] [--output bench/results/kmeans]

Each tool gets the data in the form that it requires (coincide: float16; the others: float32 unit rows), the
same number of iterations, the same initial rows if it accepts them, and no early stop if that can be disabled.
The time includes the labels of all rows. The public function chooses its first centroids itself: random rows, or
k-means++. Quality is the mean similarity of the rows with their centroids, computed in the same way for all.
At every iteration the labels of coincide are compared with those of plain float32 Lloyd (one GEMM and argmax) from
the same centroids.

The BLAS of faiss and of numpy choose their kernels by the processor's name. On a virtual processor that they do not
know, faiss falls back to kernels that are four times slower: set OPENBLAS_CORETYPE to the best that the processor can
run (SkylakeX with AVX-512, otherwise Haswell or Zen). The kernels are written with the figures.
"""

import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
from common import parser, rows_like_activations, timed, write
from threadpoolctl import threadpool_info

from coincide.base.rows import Rows, unit_rows
from coincide.clustering import kmeans as clusters
from coincide.clustering.lloyd import Lloyd

SHAPES = {
    1: (20_000, 1024, 200, 20),
    2: (20_000, 4096, 1000, 8),
    3: (33_000, 2048, 500, 50),
    4: (8_000, 20_480, 1000, 5),
}
COINCIDE = "coincide"
COINCIDE_FLOAT32 = "coincide, float32 screen"
COINCIDE_PUBLIC = "coincide, public function"
COINCIDE_PLUS_PLUS = "coincide, public function, k-means++"


def coincide_kmeans(x, seeds, iterations, int8=None, after_assign=None):
    """Run exactly `iterations` iterations of the backend memory, then assign.

    Args:
        x: (n, d) float16 rows.
        seeds: (k,) positions of the initial rows.
        iterations: number of iterations.
        int8: see `Lloyd`.
        after_assign: function of the state, called after each assignment but the last.
    """
    state = Lloyd(Rows(x), unit_rows(x[seeds].astype(np.float32)), keep=True, int8=int8)
    for _ in range(iterations):
        state.assign()
        if after_assign:
            after_assign(state)
        state.update()
        clusters._fill_empty_clusters(state)
    state.assign()
    return state.centroids, state.labels


def coincide_public(x, seeds, iterations, init="random"):
    """Run the public function, which chooses the first centroids itself."""
    result = clusters.spherical_kmeans(x, len(seeds), iterations=iterations, init=init, backend="memory", stalled=0)
    return result.centroids, result.labels


def faiss_kmeans(unit, seeds, iterations):
    import faiss

    n, d = unit.shape
    kmeans = faiss.Kmeans(
        d, len(seeds), niter=iterations, spherical=True, max_points_per_centroid=n, min_points_per_centroid=1
    )
    kmeans.train(unit, init_centroids=unit[seeds])
    return kmeans.centroids, kmeans.index.search(unit, 1)[1][:, 0]


def faiss_super(unit, seeds, iterations):
    import faiss

    n, d = unit.shape
    kmeans = faiss.SuperKmeans(
        d, len(seeds), niter=iterations, spherical=True, max_points_per_centroid=n, min_points_per_centroid=1
    )
    kmeans.train(unit)
    index = faiss.IndexFlatIP(d)
    index.add(kmeans.centroids)
    return kmeans.centroids, index.search(unit, 1)[1][:, 0]


def sklearn_kmeans(unit, seeds, iterations):
    from sklearn.cluster import KMeans

    fitted = KMeans(len(seeds), init=unit[seeds], n_init=1, max_iter=iterations, tol=0).fit(unit)
    return fitted.cluster_centers_, fitted.labels_


def sklearn_minibatch(unit, seeds, iterations):
    from sklearn.cluster import MiniBatchKMeans

    fitted = MiniBatchKMeans(
        len(seeds), init=unit[seeds], n_init=1, max_iter=iterations, batch_size=4096, tol=0, max_no_improvement=None
    ).fit(unit)
    return fitted.cluster_centers_, fitted.labels_


OTHERS = {
    "faiss.Kmeans": faiss_kmeans,
    "faiss.SuperKmeans": faiss_super,
    "sklearn KMeans": sklearn_kmeans,
    "sklearn MiniBatchKMeans": sklearn_minibatch,
}


def quality(unit, centroids, labels):
    """Mean similarity of the rows with their (normalised) centroids."""
    centroids = unit_rows(np.asarray(centroids, np.float32))
    total = 0.0
    for start in range(0, len(unit), 4096):
        block = slice(start, start + 4096)
        total += float((unit[block] * centroids[labels[block]]).sum(dtype=np.float64))
    return total / len(unit)


def compare_with_plain(x, unit, seeds, iterations):
    """Compare the labels of all iterations with those of a float32 GEMM and argmax.

    Returns:
        labels: number of labels compared.
        differing: number of labels that differ.
        largest_gap: the largest difference, in float64, between the score of the centroid that coincide chose and
            the score of the one that plain Lloyd chose.
    """
    compared, differing, largest_gap = 0, 0, 0.0

    def compare(state):
        nonlocal compared, differing, largest_gap
        for start in range(0, len(unit), 4096):
            rows = unit[start : start + 4096]
            plain = (rows @ state.centroids.T).argmax(axis=1)
            labels = state.labels[start : start + 4096]
            mismatches = np.flatnonzero(plain != labels)
            difference = state.centroids[labels[mismatches]].astype(np.float64) - state.centroids[plain[mismatches]]
            gaps = (unit_rows(x[start + mismatches].astype(np.float64)) * difference).sum(axis=1)
            compared, differing = compared + len(rows), differing + len(mismatches)
            if len(gaps):
                assert gaps.min() >= 0, "a label of coincide is not the best in float64"
                largest_gap = max(largest_gap, float(gaps.max()))

    coincide_kmeans(x, seeds, iterations, after_assign=compare)
    return {"labels": compared, "differing": differing, "largest_gap": largest_gap}


def blas_kernels():
    """Library -> kernels, of every BLAS that is loaded."""
    libraries = [library for library in threadpool_info() if library["user_api"] == "blas"]
    return {Path(library["filepath"]).parent.name: library["architecture"] for library in libraries}


def main():
    """Measure, print, write."""
    arguments = parser(__doc__)
    arguments.add_argument("--shapes", type=int, nargs="+", default=list(SHAPES))
    options = arguments.parse_args()
    warnings.simplefilter("ignore")
    small = next(rows_like_activations(2000, 128, 20))
    for int8 in (True, False):
        coincide_kmeans(small, np.arange(20), 15, int8)  # compiles and loads everything
    coincide_public(small, np.arange(20), 15, init="k-means++")
    results = []
    for number in options.shapes:
        n, d, k, iterations = SHAPES[number]
        x = np.concatenate(list(rows_like_activations(n, d, 2 * k)))
        unit = unit_rows(x.astype(np.float32))
        seeds = np.sort(np.random.default_rng(1).choice(n, k, replace=False))
        timings = {}
        tools = {
            COINCIDE: coincide_kmeans,
            COINCIDE_PUBLIC: coincide_public,
            COINCIDE_PLUS_PLUS: partial(coincide_public, init="k-means++"),
            COINCIDE_FLOAT32: partial(coincide_kmeans, int8=False),
            **OTHERS,
        }
        for name, run in tools.items():
            data = x if name.startswith(COINCIDE) else unit
            seconds, (centroids, labels) = timed(run, data, seeds, iterations)
            timings[name] = {"seconds": seconds, "mean_similarity": quality(unit, centroids, labels)}
            print(
                f"{(n, d, k, iterations)} {name}: {seconds:.2f} s, {timings[name]['mean_similarity']:.6f}", flush=True
            )
        # the first tool again at the end: how much the timings of this machine vary
        timings[COINCIDE]["seconds_again"] = timed(coincide_kmeans, x, seeds, iterations)[0]
        plain = compare_with_plain(x, unit, seeds, iterations)
        print(
            f"    again {timings[COINCIDE]['seconds_again']:.2f} s; against plain float32 labels: {plain}", flush=True
        )
        results.append({"n": n, "d": d, "k": k, "iterations": iterations, "tools": timings, "against_plain": plain})
    print("\nspeed as a ratio to faiss.Kmeans (mean similarity)\n")
    print("| tool |" + "".join(f" {r['n']:,} × {r['d']:,}, K = {r['k']:,}, {r['iterations']} it |" for r in results))
    print("| --- |" + " --- |" * len(results))
    for name in results[0]["tools"]:
        cells = [
            f" {r['tools']['faiss.Kmeans']['seconds'] / r['tools'][name]['seconds']:.2f}"
            f" ({r['tools'][name]['mean_similarity']:.6f}) |"
            for r in results
        ]
        print(f"| {name} |" + "".join(cells))

    def plot(plt):
        figure, axis = plt.subplots(figsize=(8, 3.8), constrained_layout=True)
        names = list(results[0]["tools"])
        for i, name in enumerate(names):
            ratios = [r["tools"]["faiss.Kmeans"]["seconds"] / r["tools"][name]["seconds"] for r in results]
            axis.bar(np.arange(len(results)) + (i - 3) * 0.12, ratios, width=0.11, label=name)
        labels = [f"{r['n']:,} × {r['d']:,}\nK = {r['k']:,}, {r['iterations']} iterations" for r in results]
        axis.set_xticks(range(len(results)), labels)
        axis.set(ylabel="speed, faiss.Kmeans = 1")
        axis.axhline(1, color="grey", lw=0.7)
        axis.legend(frameon=False, fontsize=8)
        return figure

    write(options.output, plot, blas=blas_kernels(), shapes=results)


if __name__ == "__main__":
    sys.exit(main())
