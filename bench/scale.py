"""Run the whole selection at several sizes, from activations on disk to the coreset, and time k-means from disk.

    .venv/bin/python bench/scale.py [--rows 83000 166000 332500 665000] [--output bench/results/scale]

Each size runs in a new process, so that its peak memory is measured, with the default number of iterations;
the smaller sizes are the first rows of the largest. The time of k-means is compared with a lower bound: the
products of plain Lloyd iterations at the rate of the int8 (or float32) product measured in the same process.
Then k-means is timed with the rows in memory and on disk, with its peak memory.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import best_of, in_new_process, parser, peak_memory, rows_like_activations, timed, write

from coincide.base.activation_store import ROW_GROUP, Activations, write_activations
from coincide.base.clustered_rows import ClusteredRows
from coincide.clustering.kmeans import spherical_kmeans
from coincide.clustering.lloyd import Multiplier, int8_is_faster
from coincide.selection.density import density
from coincide.selection.picks import pick_members
from coincide.selection.select import budget_table, shares_table
from coincide.selection.transferability import transferability

SIZES = (83_000, 166_000, 332_500, 665_000)
DIMENSION, CLUSTERS, ITERATIONS, FRACTION = 1024, 10_000, 50, 0.2
STEPS = ("k-means", "transferability", "density", "picks")
STREAMED = (400_000, 2048, 500, 10)  # rows, numbers, clusters, iterations


def write_rows(folder, n, d, groups):
    """Write activations in files of 65,536 rows, as extraction does per shard."""

    def row_groups():
        start = 0
        for block in rows_like_activations(n, d, groups):
            for rows in np.split(block, range(ROW_GROUP, len(block), ROW_GROUP)):
                yield [f"{start + i:08d}" for i in range(len(rows))], rows
                start += len(rows)

    folder.mkdir()
    blocks, count = [], 0
    for ids, rows in row_groups():
        blocks.append((ids, rows))
        count += len(ids)
        if count % 65_536 == 0 or count == n:
            write_activations(folder / f"{count:08d}.parquet", blocks, dimension=d, metadata={"hidden_size": d // 2})
            blocks = []


class FirstRows:
    """The first n rows of activations on disk, as an object that `coincide.base.rows.Rows` accepts."""

    def __init__(self, activations, n):
        self.activations, self.shape, self.dimension = activations, (n, activations.dimension), activations.dimension

    def __len__(self):
        return self.shape[0]

    def __iter__(self):
        left = len(self)
        for block in self.activations:
            yield block[:left]
            left -= len(block)
            if left <= 0:
                return

    def rows(self, indices):
        return self.activations.rows(indices)


def warm_up(d):
    """Run everything once on small data, so that it is compiled and loaded."""
    small = next(rows_like_activations(4000, d, 20))
    labels = spherical_kmeans(small, 20, iterations=5).labels
    stats = stats_with_budget(np.bincount(labels), np.full(20, 0.5), density(small, labels))
    pick_members(ClusteredRows(small, labels), stats)


def stats_with_budget(sizes, transferabilities, densities):
    """Table of clusters with their shares, and their budgets for FRACTION."""
    stats = shares_table(sizes, transferabilities, densities)
    return stats.assign(budget=budget_table(stats, FRACTION)["budget"])


def product_rate(d, k):
    """Operations per second of the matrix product that k-means uses on this machine."""
    dtype = np.int8 if int8_is_faster(d, k) else np.float32
    rows, columns = np.ones((4096, d), dtype), np.ones((min(k, 2048), d), dtype)
    multiplier = Multiplier()
    seconds, _ = best_of(lambda: multiplier.multiply(rows, columns), at_least=2)
    return 2 * rows.size * len(columns) / seconds


def whole_selection(folder, n, k):
    """Run all steps of the selection; return the seconds of each step and the peak memory."""
    x = FirstRows(Activations(folder), n)
    warm_up(x.dimension)
    rate = product_rate(x.dimension, k)
    before, seconds = peak_memory(), {}
    seconds["k-means"], clustering = timed(spherical_kmeans, x, k, iterations=ITERATIONS)
    seconds["transferability"], transfer = timed(transferability, clustering.centroids)
    seconds["density"], densities = timed(density, x, clustering.labels)
    sizes = np.bincount(clustering.labels, minlength=len(clustering.centroids))
    stats = stats_with_budget(sizes, transfer, densities)
    seconds["picks"], picks = timed(lambda: pick_members(ClusteredRows(x, clustering.labels), stats))
    assert len(set(picks.tolist())) == int(n * FRACTION)
    iterations = len(clustering.objective)
    return {
        "rows": n,
        "seconds": seconds,
        "iterations": iterations,
        "mean_similarity": clustering.objective[-1],
        "largest_cluster": int(sizes.max()),
        "product_rate": rate,
        "kmeans_floor": 2.0 * n * x.dimension * k * iterations / rate,
        "peak_bytes": peak_memory(),
        "peak_bytes_before": before,
    }


def kmeans(folder, backend):
    """Run k-means with a backend; return its seconds, its memory, and a checksum of the labels."""
    n, _, k, iterations = STREAMED
    x = Activations(folder)
    warm_up(x.dimension)
    before = peak_memory()
    seconds, clustering = timed(spherical_kmeans, x, k, iterations=iterations, backend=backend, stalled=0)
    return {
        "seconds": seconds,
        "memory_bytes": peak_memory() - before,
        "labels": int(np.dot(clustering.labels.astype(np.int64), np.arange(n) % 997)),
    }


def show(results):
    """Print the table of sizes."""
    print(
        "\n| rows | iterations | " + " | ".join(f"{s}, s" for s in STEPS) + " | all, s | k-means ÷ floor | peak, GiB |"
    )
    print("|" + " --- |" * (len(STEPS) + 5))
    for r in results:
        cells = [f"{r['seconds'][s]:.1f}" for s in STEPS]
        cells += [f"{sum(r['seconds'].values()):.0f}", f"{r['seconds']['k-means'] / r['kmeans_floor']:.2f}"]
        print(f"| {r['rows']:,} | {r['iterations']} | {' | '.join(cells)} | {r['peak_bytes'] / 2**30:.2f} |")


def slopes(results):
    """Exponent of the time in the number of rows: of each step, of all steps, and of one iteration of k-means."""
    n = np.log([r["rows"] for r in results])
    seconds = {s: [r["seconds"][s] for r in results] for s in STEPS}
    seconds["all"] = [sum(r["seconds"].values()) for r in results]
    seconds["an iteration"] = [r["seconds"]["k-means"] / r["iterations"] for r in results]
    return {name: float(np.polyfit(n, np.log(values), 1)[0]) for name, values in seconds.items()}


def main():
    """Measure, print, write."""
    arguments = parser(__doc__)
    arguments.add_argument("--rows", type=int, nargs="+", default=SIZES)
    arguments.add_argument("--clusters", type=int, default=CLUSTERS)
    arguments.add_argument("--folder", help="where to write the rows: 1.4 GB, then 1.6 GB")
    arguments.add_argument("--only", nargs="+", help="run one measurement: whole N, or kmeans BACKEND")
    options = arguments.parse_args()
    if options.only:
        measurement, value = options.only
        folder = Path(options.folder)
        if measurement == "whole":
            print(json.dumps(whole_selection(folder, int(value), options.clusters)))
        else:
            print(json.dumps(kmeans(folder, value)))
        return
    results, streamed = [], {}
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        rows = Path(temporary) / "rows"
        write_rows(rows, max(options.rows), DIMENSION, 2 * options.clusters)
        common = ("--folder", rows, "--clusters", options.clusters)
        for n in sorted(options.rows):
            results.append(in_new_process(__file__, *common, "--only", "whole", n))
            show(results[-1:])
    slope = slopes(results) if len(results) > 1 else {}
    show(results)
    print("\nexponent in the number of rows:", ", ".join(f"{name} {value:.2f}" for name, value in slope.items()))
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        rows = Path(temporary) / "rows"
        write_rows(rows, *STREAMED[:2], 2 * STREAMED[2])
        for name, backend in [("memory", "memory"), ("stream", "stream"), ("memory again", "memory")]:
            streamed[name] = in_new_process(__file__, "--folder", rows, "--only", "kmeans", backend)
            print(name, streamed[name], flush=True)
    assert len({s.pop("labels") for s in streamed.values()}) == 1, "labels differ"
    time_ratio = streamed["stream"]["seconds"] / streamed["memory"]["seconds"]
    memory_ratio = streamed["stream"]["memory_bytes"] / streamed["memory"]["memory_bytes"]
    print(f"from disk: {time_ratio:.2f} times the time in memory with {memory_ratio:.3f} of its memory, labels equal")

    def plot(plt):
        figure, axis = plt.subplots(figsize=(6.4, 4), constrained_layout=True)
        n = np.array([r["rows"] for r in results])
        for step in STEPS:
            values = [r["seconds"][step] for r in results]
            axis.loglog(n, values, "o-", label=f"{step} (N^{slope.get(step, np.nan):.2f})")
        axis.loglog(n, [r["kmeans_floor"] for r in results], "k--", lw=0.8, label="products of plain Lloyd")
        axis.set_xticks(n, [f"{v:,}" for v in n], minor=False)
        axis.minorticks_off()
        axis.set(xlabel=f"rows of {DIMENSION:,} numbers, K = {options.clusters:,}", ylabel="seconds")
        axis.legend(frameon=False, fontsize=8)
        return figure

    shape = dict(zip(("rows", "dimension", "clusters", "iterations"), STREAMED))
    write(
        options.output, plot, dimension=DIMENSION, clusters=options.clusters, sizes=results, slopes=slope,
        from_disk={**shape, **streamed, "time_ratio": time_ratio, "memory_ratio": memory_ratio},
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
