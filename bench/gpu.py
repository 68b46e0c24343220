"""Time all code that runs on a GPU; prints the results of each benchmark and writes them as JSON.

    python bench/gpu.py [--output bench/results/gpu]                     # the published size, 8 minutes on an H100
    python bench/gpu.py --device cpu --rows 4000 --dimension 256 --clusters 50    # a smoke test

Needs no network. A benchmark whose packages are not installed is skipped, with the reason in the results.
Shares are relative to the rate of a plain bf16 matrix product of the same shape on the same device in the
same run. Other k-means packages get the same rows and the same first centroids.
"""

import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import parser, timed, write

from coincide.base.clustered_rows import ClusteredRows
from coincide.base.rows import Rows, unit_rows
from coincide.clustering.lloyd_gpu import BLOCK, DeviceLloyd
from coincide.selection.density import cluster_densities
from coincide.selection.picks import pick_members

ITERATIONS = 3
FRACTION = 0.2


class Skipped(Exception):
    """A benchmark cannot run here; the message is the reason."""


def seconds_of(device, function, times=1):
    """(mean seconds per call, result), including the work that a call leaves queued on the device."""
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    for _ in range(times):
        result = function()
    synchronize()
    return (time.perf_counter() - start) / times, result


def rows_in_groups(n, d, groups, device):
    """(n, d) float16 array of unit rows like activations (common mean, groups, noise), generated on the device."""
    torch.manual_seed(0)
    mean, centres = torch.randn(d, device=device), 0.45 * torch.randn(groups, d, device=device)
    x = np.empty((n, d), np.float16)
    for start in range(0, n, BLOCK):
        size = min(BLOCK, n - start)
        block = mean + centres[torch.randint(groups, (size,), device=device)]
        block += 0.3 * torch.randn(size, d, device=device)
        x[start : start + size] = torch.nn.functional.normalize(block, dim=1).half().cpu().numpy()
    return x


def matrix_products(options, state):
    """TFLOP/s of plain products of a block of rows with all centroids."""
    rates = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        a = torch.randn(BLOCK, options.dimension, device=options.device, dtype=dtype)
        b = torch.randn(options.clusters, options.dimension, device=options.device, dtype=dtype)
        seconds_of(options.device, lambda a=a, b=b: a @ b.T, 3)
        seconds, _ = seconds_of(options.device, lambda a=a, b=b: a @ b.T, 20 if options.device == "cuda" else 1)
        rates[f"{name}_tflops"] = 2 * BLOCK * options.dimension * options.clusters / seconds / 1e12
    state["rate"] = rates["bf16_tflops"]
    return rates


def kmeans(options, state):
    """Iterations of the backend torch with the rows on the device."""
    x = state["x"] = rows_in_groups(options.rows, options.dimension, options.clusters, options.device)
    seeds = np.sort(np.random.default_rng(0).choice(len(x), options.clusters, replace=False))
    state["seeds"] = unit_rows(x[seeds].astype(np.float32))
    loading, lloyd = timed(lambda: DeviceLloyd(Rows(x), state["seeds"], [options.device], resident=True))
    times, iterations = [], []
    for _ in range(ITERATIONS):
        assigning, changed = seconds_of(options.device, lloyd.assign)
        updating, objective = seconds_of(options.device, lloyd.update)
        times.append(assigning + updating)
        iterations.append({"assign": assigning, "update": updating, "changed": changed, "objective": objective})
    state["labels"], operations = lloyd.labels, 2 * len(x) * options.dimension * options.clusters
    return {
        "seconds_per_iteration": times[-1],
        "first_iteration": times[0],
        "share_of_bf16": operations / times[-1] / 1e12 / state["rate"],
        "loading_seconds": loading,
        "iterations": iterations,
    }


def streamed(options, state):
    """One assignment with the rows in host memory."""
    lloyd = DeviceLloyd(Rows(state["x"]), state["seeds"], [options.device], resident=False)
    lloyd.assign()
    seconds, _ = seconds_of(options.device, lloyd.assign)
    operations = 2 * len(state["x"]) * options.dimension * options.clusters
    return {"assign_seconds": seconds, "share_of_bf16": operations / seconds / 1e12 / state["rate"]}


def float32_products(options, state):
    """Assignment by plain float32 products, measured on a sixteenth of the rows, in seconds for all rows."""
    x = torch.from_numpy(state["x"][: max(BLOCK, len(state["x"]) // 16)]).to(options.device)
    centroids = torch.from_numpy(state["seeds"]).to(options.device)

    def assign():
        return [(x[i : i + BLOCK].float() @ centroids.T).argmax(dim=1) for i in range(0, len(x), BLOCK)]

    assign()
    seconds, _ = seconds_of(options.device, assign)
    return {"assign_seconds": seconds * len(state["x"]) / len(x)}


def flash_kmeans(options, state):
    """flash-kmeans on the same rows: seconds per iteration."""
    try:
        from flash_kmeans import batch_kmeans_Cosine
    except ImportError as error:
        raise Skipped(f"flash-kmeans is not installed ({error})") from error
    x = torch.from_numpy(state["x"]).to(options.device)[None]
    first = torch.from_numpy(state["seeds"]).to(options.device, torch.float16)[None]

    def run(iterations):
        return batch_kmeans_Cosine(x, options.clusters, max_iters=iterations, tol=-1, init_centroids=first)

    run(1)
    short, _ = seconds_of(options.device, lambda: run(1))
    long, _ = seconds_of(options.device, lambda: run(1 + ITERATIONS))
    return {"seconds_per_iteration": (long - short) / ITERATIONS}


def cuml(options, state):
    """cuML on as many rows as fit in float32: seconds per iteration, and ours on the same rows."""
    try:
        import cupy
        from cuml.cluster import KMeans
    except ImportError as error:
        raise Skipped(f"cuml is not installed ({error})") from error
    free, _ = torch.cuda.mem_get_info()
    n = int(min(len(state["x"]), 0.6 * free / (4 * options.dimension)))
    data, seeds = cupy.asarray(state["x"][:n]).astype(cupy.float32), cupy.asarray(state["seeds"])

    def run(iterations, data=data):
        kmeans = KMeans(n_clusters=options.clusters, init=seeds, n_init=1, max_iter=iterations, tol=0, random_state=0)
        kmeans.fit(data)
        cupy.cuda.Device().synchronize()

    run(1)
    short, _ = timed(run, 1)
    long, _ = timed(run, 1 + ITERATIONS)
    del data, run
    cupy.get_default_memory_pool().free_all_blocks()
    lloyd = DeviceLloyd(Rows(state["x"][:n]), state["seeds"], [options.device], resident=True)
    lloyd.assign()
    ours, _ = seconds_of(options.device, lambda: (lloyd.update(), lloyd.assign()))
    return {"rows": n, "seconds_per_iteration": (long - short) / ITERATIONS, "ours_on_these": ours}


def agreement(options, state):
    """Share of rows with the same label in the backends torch and memory, from the same first centroids."""
    from coincide.clustering.lloyd import Lloyd

    k = min(200, options.clusters)
    x, seeds = state["x"][: 60 * k], state["seeds"][:k]
    labels = []
    for lloyd in (DeviceLloyd(Rows(x), seeds, [options.device]), Lloyd(Rows(x), seeds, keep=True)):
        for _ in range(10):
            lloyd.assign()
            lloyd.update()
        lloyd.assign()
        labels.append(lloyd.labels)
    return {"rows": len(x), "clusters": k, "same_labels": float((labels[0] == labels[1]).mean())}


def density_and_picks(options, state):
    """Density and picks of all clusters of `kmeans`, with a fifth of the rows picked."""
    clustered = ClusteredRows(state["x"], state["labels"], options.clusters)
    budgets = np.round(FRACTION * clustered.sizes).astype(np.int64)
    stats = pd.DataFrame({"share": clustered.sizes / len(clustered.labels), "budget": budgets})
    device = "cpu:0" if options.device == "cpu" else options.device  # cpu:0: in batches, as on a GPU
    density, _ = seconds_of(options.device, lambda: cluster_densities(clustered, device=device))
    seconds, picks = seconds_of(options.device, lambda: pick_members(clustered, stats, device=device))
    return {"density_seconds": density, "picks_seconds": seconds, "picks": len(picks)}


def extraction(options, state):
    """bench/extraction.py with the model of 2B shape in bfloat16."""
    if options.device == "cpu":
        raise Skipped("the model of 2B shape needs a GPU")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                sys.executable, Path(__file__).with_name("extraction.py"), "--shape", "2b", "--dtype", "bfloat16",
                "--device", options.device, "--samples", "384", "--batch-tokens", "32768",
                "--peak", f"{state['rate']:.1f}", "--output", f"{folder}/extraction",
            ], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        if done.returncode:
            raise Skipped(f"bench/extraction.py failed: {done.stdout.strip().splitlines()[-1]}")
        rows = json.loads(Path(f"{folder}/extraction.json").read_text())["rows"]
    names = ("samples_a_second", "ratio", "cosine", "waited", "share_of_peak")
    return {name: rows[-1][name] for name in names} | {"published": rows[0]["samples_a_second"]}


BENCHMARKS = (
    matrix_products, kmeans, float32_products, streamed, agreement, density_and_picks, flash_kmeans, cuml, extraction,
)  # fmt: skip


def main():
    """Measure, print, and write the results after each benchmark."""
    arguments = parser(__doc__)
    arguments.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    arguments.add_argument("--rows", type=int, default=665_000)
    arguments.add_argument("--dimension", type=int, default=20_480)
    arguments.add_argument("--clusters", type=int, default=10_000)
    arguments.add_argument("--only", nargs="+", default=[b.__name__ for b in BENCHMARKS])
    options = arguments.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device is visible to torch; for a smoke test use --device cpu with small sizes")
    device_name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    print(f"{device_name}, torch {torch.__version__}")
    print(f"{options.rows} rows of {options.dimension}, {options.clusters} clusters")
    sizes = {"rows": options.rows, "dimension": options.dimension, "clusters": options.clusters}
    results, state = {}, {}
    for benchmark in BENCHMARKS:
        name = benchmark.__name__
        if name not in options.only:
            continue
        start = time.perf_counter()
        try:
            results[name] = benchmark(options, state)
        except Exception as error:  # continue with the other benchmarks
            results[name] = {"left_out": f"{type(error).__name__}: {error}"}
        gc.collect()
        if options.device == "cuda":
            torch.cuda.empty_cache()
        print(f"{name} ({time.perf_counter() - start:.0f} s): {json.dumps(results[name])}", flush=True)
        write(options.output, None, device=device_name, torch=torch.__version__, sizes=sizes, results=results)


if __name__ == "__main__":
    main()
