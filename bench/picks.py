"""Time the picks against the published procedure, which re-evaluates each candidate set at each pick.

    .venv/bin/python bench/picks.py [--output bench/results/picks]

Both need the kernel of the cluster: the column "with the kernel" adds the time to compute it to both. The
last line is a cluster of 20,000 members, in a separate process to measure its peak memory.
"""

import json
import sys

import numpy as np
from common import best_of, in_new_process, parser, peak_memory, rows_like_activations, timed, write

from coincide.selection.kernel import ClusterKernel
from coincide.selection.picks import greedy_picks

SIZES = (66, 200, 500)
FRACTION = 0.2
DIMENSION = 1024
GIANT = 20_000


def published_picks(kernel, m):
    """The published procedure: at each pick, MMD² of every candidate set is computed from the kernel.

    Both terms are means over the members of each set: among themselves, and with the whole cluster.
    """
    picks = []
    for _ in range(m):
        candidates = np.setdiff1d(np.arange(len(kernel)), picks)
        sets = np.array([[*picks, candidate] for candidate in candidates])  # (candidates, size)
        within = kernel[sets[:, :, None], sets[:, None, :]].mean(axis=(1, 2))
        value = within - 2 * kernel[sets].mean(axis=(1, 2))  # (candidates, size, members)
        picks.append(int(candidates[np.argmax(value <= value.min() + 1e-12)]))
    return np.array(picks)


def giant():
    """Seconds and peak memory of one large cluster."""
    x = np.concatenate(list(rows_like_activations(GIANT, DIMENSION, 1)))
    greedy_picks(ClusterKernel(x[:9000:4]), 3)  # warm-up: compile and load
    seconds, picks = timed(lambda: greedy_picks(ClusterKernel(x), int(GIANT * FRACTION)))
    return {"members": GIANT, "picks": len(set(picks.tolist())), "seconds": seconds, "peak_bytes": peak_memory()}


def main():
    """Measure, print, write."""
    arguments = parser(__doc__)
    arguments.add_argument("--giant", action="store_true", help="only the large cluster")
    options = arguments.parse_args()
    if options.giant:
        print(json.dumps(giant()))
        return
    rows = []
    print("| members | picks | published procedure, s | ours, s | ratio | with the kernel | same picks |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for n in SIZES:
        x, m = next(rows_like_activations(n, DIMENSION, 1, seed=n)), int(n * FRACTION)
        kernel_seconds, kernel = best_of(lambda x=x: ClusterKernel(x))
        published_seconds, expected = best_of(lambda kernel=kernel, m=m: published_picks(kernel.whole, m))
        seconds, picks = best_of(lambda kernel=kernel, m=m: greedy_picks(kernel, m))
        row = {
            "members": n,
            "picks": m,
            "published_s": published_seconds,
            "ours_s": seconds,
            "kernel_s": kernel_seconds,
            "ratio": published_seconds / seconds,
            "ratio_with_kernel": (published_seconds + kernel_seconds) / (seconds + kernel_seconds),
            "same": picks.tolist() == expected.tolist(),
        }
        rows.append(row)
        print(
            f"| {n} | {m} | {published_seconds:.4f} | {seconds:.6f} "
            f"| {row['ratio']:,.0f} | {row['ratio_with_kernel']:,.0f} | {row['same']} |",
            flush=True,
        )
    large = in_new_process(__file__, "--giant")
    print(f"\none cluster of {GIANT:,}: {large['picks']:,} picks in {large['seconds']:.0f} s, ", end="")
    print(f"peak memory of the process {large['peak_bytes'] / 2**30:.2f} GiB")

    def plot(plt):
        figure, axis = plt.subplots(figsize=(5, 3.5), constrained_layout=True)
        axis.loglog(SIZES, [r["published_s"] for r in rows], "o-", label="published procedure")
        axis.loglog(SIZES, [r["ours_s"] for r in rows], "o-", label="running sums")
        axis.set(xlabel="members of the cluster (a fifth picked)", ylabel="seconds, without the kernel")
        axis.set_xticks(SIZES, map(str, SIZES))
        axis.legend(frameon=False)
        return figure

    write(options.output, plot, dimension=DIMENSION, fraction=FRACTION, rows=rows, giant=large)


if __name__ == "__main__":
    sys.exit(main())
