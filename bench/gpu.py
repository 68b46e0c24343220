"""Everything that this project has for a GPU, timed in one run: a table, and the figures as JSON.

    python bench/gpu.py [--output bench/results/gpu]                     # the paper's size, under 8 minutes on an H100
    python bench/gpu.py --device cpu --rows 4000 --dimension 256 --clusters 50    # only to see that it runs

Needs no network and takes the packages that are there; a part whose packages are missing says so and is
left out. Shares are of the rate that a plain bf16 matrix product of the same shape reaches on the same
device in the same run. Rivals get the same rows and the same first centroids.
"""

import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import parser, timed, write

from coincide.base.rows import Rows, members_by_cluster, unit_rows
from coincide.clustering.lloyd_gpu import BLOCK, DeviceLloyd
from coincide.selection.kernel_gpu import densities_on, picks_on

ITERATIONS = 3
FRACTION = 0.2


class LeftOut(Exception):
    """A part that cannot run here; says why."""


def seconds_of(device, function, times=1):
    """Seconds of one call, the mean over several, the device waited for."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    for _ in range(times):
        result = function()
    wait()
    return (time.perf_counter() - began) / times, result


def clustered_rows(n, d, groups, device):
    """(n, d) float16 array of unit rows like activations: a common mean, groups, noise; made on the device."""
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
    found = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        a = torch.randn(BLOCK, options.dimension, device=options.device, dtype=dtype)
        b = torch.randn(options.clusters, options.dimension, device=options.device, dtype=dtype)
        seconds_of(options.device, lambda a=a, b=b: a @ b.T, 3)
        seconds, _ = seconds_of(options.device, lambda a=a, b=b: a @ b.T, 20 if options.device == "cuda" else 1)
        found[f"{name}_tflops"] = 2 * BLOCK * options.dimension * options.clusters / seconds / 1e12
    state["rate"] = found["bf16_tflops"]
    return found


def kmeans(options, state):
    """Iterations of backend torch, rows on the device."""
    x = state["x"] = clustered_rows(options.rows, options.dimension, options.clusters, options.device)
    seeds = np.sort(np.random.default_rng(0).choice(len(x), options.clusters, replace=False))
    state["seeds"] = unit_rows(x[seeds].astype(np.float32))
    loading, lloyd = timed(lambda: DeviceLloyd(Rows(x), state["seeds"], [options.device], resident=True))
    times, parts = [], []
    for _ in range(ITERATIONS):
        assigning, changed = seconds_of(options.device, lloyd.assign)
        updating, objective = seconds_of(options.device, lloyd.update)
        times.append(assigning + updating)
        parts.append({"assign": assigning, "update": updating, "changed": changed, "objective": objective})
    state["labels"], operations = lloyd.labels, 2 * len(x) * options.dimension * options.clusters
    return {
        "seconds_an_iteration": times[-1],
        "first_iteration": times[0],
        "share_of_bf16": operations / times[-1] / 1e12 / state["rate"],
        "loading_seconds": loading,
        "iterations": parts,
    }


def streamed(options, state):
    """One iteration with the rows in host memory."""
    lloyd = DeviceLloyd(Rows(state["x"]), state["seeds"], [options.device], resident=False)
    lloyd.assign()
    seconds, _ = seconds_of(options.device, lloyd.assign)
    operations = 2 * len(state["x"]) * options.dimension * options.clusters
    return {"assign_seconds": seconds, "share_of_bf16": operations / seconds / 1e12 / state["rate"]}


def float32_products(options, state):
    """Assignment by plain float32 products, on a sixteenth of the rows; seconds for all of them."""
    x = torch.from_numpy(state["x"][: max(BLOCK, len(state["x"]) // 16)]).to(options.device)
    centroids = torch.from_numpy(state["seeds"]).to(options.device)

    def assign():
        return [(x[i : i + BLOCK].float() @ centroids.T).argmax(dim=1) for i in range(0, len(x), BLOCK)]

    assign()
    seconds, _ = seconds_of(options.device, assign)
    return {"assign_seconds": seconds * len(state["x"]) / len(x)}


def flash_kmeans(options, state):
    """flash-kmeans on the same rows: seconds an iteration."""
    try:
        from flash_kmeans import batch_kmeans_Cosine
    except ImportError as error:
        raise LeftOut(f"flash-kmeans is not installed ({error})") from error
    x = torch.from_numpy(state["x"]).to(options.device)[None]
    first = torch.from_numpy(state["seeds"]).to(options.device, torch.float16)[None]

    def run(iterations):
        return batch_kmeans_Cosine(x, options.clusters, max_iters=iterations, tol=-1, init_centroids=first)

    run(1)
    one, _ = seconds_of(options.device, lambda: run(1))
    more, _ = seconds_of(options.device, lambda: run(1 + ITERATIONS))
    return {"seconds_an_iteration": (more - one) / ITERATIONS}


def cuml(options, state):
    """cuML on as many of the rows as fit in float32: seconds an iteration, and ours on the same rows."""
    try:
        import cupy
        from cuml.cluster import KMeans
    except ImportError as error:
        raise LeftOut(f"cuml is not installed ({error})") from error
    free, _ = torch.cuda.mem_get_info()
    n = int(min(len(state["x"]), 0.6 * free / (4 * options.dimension)))
    data, seeds = cupy.asarray(state["x"][:n]).astype(cupy.float32), cupy.asarray(state["seeds"])

    def run(iterations, data=data):
        kmeans = KMeans(n_clusters=options.clusters, init=seeds, n_init=1, max_iter=iterations, tol=0, random_state=0)
        kmeans.fit(data)
        cupy.cuda.Device().synchronize()

    run(1)
    one, _ = timed(run, 1)
    more, _ = timed(run, 1 + ITERATIONS)
    del data, run
    cupy.get_default_memory_pool().free_all_blocks()
    lloyd = DeviceLloyd(Rows(state["x"][:n]), state["seeds"], [options.device], resident=True)
    lloyd.assign()
    ours, _ = seconds_of(options.device, lambda: (lloyd.update(), lloyd.assign()))
    return {"rows": n, "seconds_an_iteration": (more - one) / ITERATIONS, "ours_on_these": ours}


def agreement(options, state):
    """Share of rows that the backends torch and memory give the same label, from the same first centroids."""
    from coincide.clustering.lloyd import Lloyd

    k = min(200, options.clusters)
    x, seeds = state["x"][: 60 * k], state["seeds"][:k]
    found = []
    for lloyd in (DeviceLloyd(Rows(x), seeds, [options.device]), Lloyd(Rows(x), seeds, keep=True)):
        for _ in range(10):
            lloyd.assign()
            lloyd.update()
        lloyd.assign()
        found.append(lloyd.labels)
    return {"rows": len(x), "clusters": k, "same_labels": float((found[0] == found[1]).mean())}


def density_and_picks(options, state):
    """Of all clusters of the k-means above, a fifth of the rows picked."""
    members = members_by_cluster(state["labels"], options.clusters)
    budgets = np.array([round(FRACTION * len(m)) for m in members])
    rows = Rows(state["x"])
    density, _ = seconds_of(options.device, lambda: densities_on(options.device, rows, members, gamma=1.0))
    picks, found = seconds_of(options.device, lambda: picks_on(options.device, rows, members, budgets, gamma=1.0))
    return {"density_seconds": density, "picks_seconds": picks, "picks": sum(map(len, found))}


def extraction(options, state):
    """bench/extraction.py with the 2B-shaped model, bfloat16."""
    if options.device == "cpu":
        raise LeftOut("the 2B-shaped model is for a GPU")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                sys.executable, Path(__file__).with_name("extraction.py"), "--shape", "2b", "--dtype", "bfloat16",
                "--device", options.device, "--samples", "384", "--batch-tokens", "32768",
                "--peak", f"{state['rate']:.1f}", "--output", f"{folder}/extraction",
            ], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        if done.returncode:
            raise LeftOut(f"bench/extraction.py failed: {done.stdout.strip().splitlines()[-1]}")
        rows = json.loads(Path(f"{folder}/extraction.json").read_text())["rows"]
    names = ("samples_a_second", "ratio", "cosine", "waited", "share_of_peak")
    return {name: rows[-1][name] for name in names} | {"published": rows[0]["samples_a_second"]}


PARTS = (
    matrix_products, kmeans, float32_products, streamed, agreement, density_and_picks, flash_kmeans, cuml, extraction,
)  # fmt: skip


def main():
    """Measure, print, write after every part."""
    arguments = parser(__doc__)
    arguments.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    arguments.add_argument("--rows", type=int, default=665_000)
    arguments.add_argument("--dimension", type=int, default=20_480)
    arguments.add_argument("--clusters", type=int, default=10_000)
    arguments.add_argument("--parts", nargs="+", default=[part.__name__ for part in PARTS])
    options = arguments.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device here; --device cpu with small sizes shows that the program runs")
    name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    print(f"{name}, torch {torch.__version__}: {options.rows} rows of {options.dimension}, {options.clusters} clusters")
    sizes = {"rows": options.rows, "dimension": options.dimension, "clusters": options.clusters}
    results, state = {}, {}
    for part in PARTS:
        if part.__name__ not in options.parts:
            continue
        began = time.perf_counter()
        try:
            results[part.__name__] = part(options, state)
        except Exception as error:  # the other parts are worth having
            results[part.__name__] = {"left_out": f"{type(error).__name__}: {error}"}
        gc.collect()
        if options.device == "cuda":
            torch.cuda.empty_cache()
        print(
            f"{part.__name__} ({time.perf_counter() - began:.0f} s): {json.dumps(results[part.__name__])}", flush=True
        )
        write(options.output, None, device=name, torch=torch.__version__, sizes=sizes, results=results)


if __name__ == "__main__":
    main()
