"""Time the picks against the published procedure, in one run: each candidate set evaluated anew at each pick.

    .venv/bin/python bench/picks.py [--output bench/results/picks-<machine>]

Prints a table, and with --output writes it as JSON with a plot beside it.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np

import coincide
from coincide.kernel import gaussian_kernel

SIZES = (66, 200, 500)
FRACTION = 0.2
DIMENSION = 512


def published_picks(x, m, *, gamma=1.0):
    """The published procedure: the kernel once, then MMD² of every candidate set from its members."""
    kernel = gaussian_kernel(x, gamma=gamma)
    to_cluster = kernel.mean(axis=1)
    picks = []
    for _ in range(m):
        candidates = np.setdiff1d(np.arange(len(x)), picks)
        sets = np.array([[*picks, candidate] for candidate in candidates])  # (candidates, size)
        within = kernel[sets[:, :, None], sets[:, None, :]].mean(axis=(1, 2))
        value = within - 2 * to_cluster[sets].mean(axis=1)
        picks.append(int(candidates[np.argmax(value <= value.min() + 1e-12)]))
    return np.array(picks)


def seconds(function, at_least=0.5):
    """Seconds of one call, the best of as many as fit `at_least`, and its result."""
    best, start = np.inf, time.perf_counter()
    while time.perf_counter() - start < at_least:
        begin = time.perf_counter()
        result = function()
        best = min(best, time.perf_counter() - begin)
    return best, result


def cluster(n, seed):
    """Unit rows around a common mean, as activations lie."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=DIMENSION) + 0.7 * rng.normal(size=(n, DIMENSION))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)


def main():
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="file name without ending")
    output = parser.parse_args().output
    rows = []
    print("| members | picks | published procedure, s | ours, s | ratio | same picks |")
    print("| --- | --- | --- | --- | --- | --- |")
    for n in SIZES:
        x, m = cluster(n, n), int(n * FRACTION)
        theirs, expected = seconds(lambda x=x, m=m: published_picks(x, m))
        ours, picks = seconds(lambda x=x, m=m: coincide.greedy_mmd(x, m))
        same = picks.tolist() == expected.tolist()
        rows.append(
            {"members": n, "picks": m, "published_s": theirs, "ours_s": ours, "ratio": theirs / ours, "same": same}
        )
        print(f"| {n} | {m} | {theirs:.4f} | {ours:.5f} | {theirs / ours:,.0f} | {same} |", flush=True)
    if output:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        machine = {
            "machine": platform.processor() or platform.machine(),
            "date": time.strftime("%Y-%m-%d"),
            "rows": rows,
        }
        Path(f"{output}.json").write_text(json.dumps(machine, indent=1) + "\n")
        _plot(rows, f"{output}.svg")


def _plot(rows, path):
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 3.5), constrained_layout=True)
    axis.loglog([r["members"] for r in rows], [r["published_s"] for r in rows], "o-", label="published procedure")
    axis.loglog([r["members"] for r in rows], [r["ours_s"] for r in rows], "o-", label="running sums")
    axis.set(xlabel="members of the cluster (a fifth picked)", ylabel="seconds")
    axis.legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
