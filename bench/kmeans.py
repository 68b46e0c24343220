"""Time spherical k-means against what people use for it, in one run on the same data.

    .venv/bin/python bench/kmeans.py [--shapes 1 2 3 4] [--output bench/results/kmeans]

Every tool gets the data in the form that it takes (ours: float16; theirs: float32 unit rows), the
same number of iterations, no early stop where it can be switched off, the same initial rows where it
takes any, and is timed until it gives labels for all rows; "own first centroids" is the public
function, the choice of them timed too. Quality is the mean similarity of the
rows with their centroids, computed alike for all. Our labels are compared with those of a plain
float32 Lloyd (one GEMM and argmax) at every iteration, from the centroids of that iteration.
"""

import sys
import warnings

import numpy as np
from common import parser, rows_like_activations, timed, write

from coincide.base.rows import Rows, unit_rows
from coincide.clustering import kmeans as clusters
from coincide.clustering.lloyd import Lloyd

SHAPES = {
    1: (20_000, 1024, 200, 20),
    2: (20_000, 4096, 1000, 8),
    3: (33_000, 2048, 500, 50),
    4: (8_000, 20_480, 1000, 5),
}
OURS, OURS_FLOAT = "coincide", "coincide, float32 screen"
OURS_OWN = "coincide, own first centroids"


def ours(x, seeds, iterations, int8=None, each=None):
    """Exactly `iterations` iterations of the backend memory, then labels."""
    state = Lloyd(Rows(x), unit_rows(x[seeds].astype(np.float32)), keep=True, int8=int8)
    for _ in range(iterations):
        state.assign()
        if each:
            each(state)
        state.update()
        clusters._fill_empty_clusters(state)
    state.assign()
    return state.centroids, state.labels


def ours_as_called(x, seeds, iterations):
    """The public function, with the first centroids that it chooses for itself."""
    result = clusters.spherical_kmeans(x, len(seeds), iterations=iterations, backend="memory", stalled=0)
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


RIVALS = {
    "faiss.Kmeans": faiss_kmeans,
    "faiss.SuperKmeans": faiss_super,
    "sklearn KMeans": sklearn_kmeans,
    "sklearn MiniBatchKMeans": sklearn_minibatch,
}


def quality(unit, centroids, labels):
    """Mean similarity of the rows with their (normalised) centroids."""
    centroids = unit_rows(np.asarray(centroids, np.float32))
    parts = range(0, len(unit), 4096)
    total = sum(float((unit[s : s + 4096] * centroids[labels[s : s + 4096]]).sum(dtype=np.float64)) for s in parts)
    return total / len(unit)


def compare_with_plain(x, unit, seeds, iterations):
    """Rows, over all iterations, whose label differs from float32 GEMM and argmax, and the largest gap that decided.

    The gap is how much smaller, in float64, the score of plain Lloyd's centroid is than that of ours.
    """
    differing, gap, looked = 0, 0.0, 0

    def each(state):
        nonlocal differing, gap, looked
        for start in range(0, len(unit), 4096):
            rows = unit[start : start + 4096]
            plain = (rows @ state.centroids.T).argmax(axis=1)
            mine = state.labels[start : start + 4096]
            other = np.flatnonzero(plain != mine)
            difference = state.centroids[mine[other]].astype(np.float64) - state.centroids[plain[other]]
            gaps = (unit_rows(x[start + other].astype(np.float64)) * difference).sum(axis=1)
            differing, looked = differing + len(other), looked + len(rows)
            if len(gaps):
                assert gaps.min() >= 0, "a label of ours is not the best in float64"
                gap = max(gap, float(gaps.max()))

    ours(x, seeds, iterations, each=each)
    return {"labels": looked, "differing": differing, "largest_gap": gap}


def main():
    """Measure, print, write."""
    arguments = parser(__doc__)
    arguments.add_argument("--shapes", type=int, nargs="+", default=list(SHAPES))
    options = arguments.parse_args()
    warnings.simplefilter("ignore")
    small = next(rows_like_activations(2000, 128, 20))
    for int8 in (True, False):
        ours(small, np.arange(20), 15, int8)  # compiled and loaded
    results = []
    for number in options.shapes:
        n, d, k, iterations = SHAPES[number]
        x = np.concatenate(list(rows_like_activations(n, d, 2 * k)))
        unit = unit_rows(x.astype(np.float32))
        seeds = np.sort(np.random.default_rng(1).choice(n, k, replace=False))
        timings = {}
        mine = {OURS: ours, OURS_OWN: ours_as_called, OURS_FLOAT: lambda *a: ours(*a, int8=False)}
        for name, run in (mine | RIVALS).items():
            data = x if name.startswith(OURS) else unit
            seconds, (centroids, labels) = timed(run, data, seeds, iterations)
            timings[name] = {"seconds": seconds, "mean_similarity": quality(unit, centroids, labels)}
            print(
                f"{(n, d, k, iterations)} {name}: {seconds:.2f} s, {timings[name]['mean_similarity']:.6f}", flush=True
            )
        # the first again at the end: what the machine does to a figure
        timings[OURS]["seconds_again"] = timed(ours, x, seeds, iterations)[0]
        plain = compare_with_plain(x, unit, seeds, iterations)
        print(f"    again {timings[OURS]['seconds_again']:.2f} s; against plain float32 labels: {plain}", flush=True)
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

    write(options.output, plot, shapes=results)


if __name__ == "__main__":
    sys.exit(main())
