"""What the benchmarks share: synthetic activations, timers, a description of the machine, results on disk."""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

REPO = Path(__file__).resolve().parent.parent


def rows_like_activations(n, d, groups, seed=0):
    """Yield float16 blocks of n unit rows with a strong common mean, groups of heavy-tailed size, and noise.

    The mean cosine of a row with the common mean is about 0.85.
    """
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=d)
    sizes = rng.pareto(1.2, size=groups) + 0.2
    centres = (0.45 * rng.normal(size=(groups, d))).astype(np.float32)
    basis = (rng.normal(size=(64, d)) / 8 * np.arange(1, 65)[:, None] ** -0.5).astype(np.float32)
    for start in range(0, n, 4096):
        count = min(4096, n - start)
        which = rng.choice(groups, size=count, p=sizes / sizes.sum())
        rows = mean + centres[which] + rng.normal(size=(count, 64)).astype(np.float32) @ basis
        rows += 0.35 * rng.standard_normal(size=(count, d), dtype=np.float32)
        yield (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def timed(function, *arguments, **options):
    """(seconds, result) of one call."""
    start = time.perf_counter()
    result = function(*arguments, **options)
    return time.perf_counter() - start, result


def link_workflow(folder):
    """Make a folder in which Snakemake runs this checkout's workflow; what is there is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("Snakefile", "rules", "workflow_scripts", "config", "config.yaml", "docs", "envs", "profiles"):
        if not (folder / name).exists():
            (folder / name).symlink_to(REPO / name)


def best_of(function, at_least=0.5):
    """(seconds, result) of the fastest call: one call to warm up, then calls for at least `at_least` seconds."""
    function()
    best, start = np.inf, time.perf_counter()
    while best == np.inf or time.perf_counter() - start < at_least:
        seconds, result = timed(function)
        best = min(best, seconds)
    return best, result


def peak_memory():
    """Peak resident memory of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_new_process(script, *arguments):
    """Run a script with arguments in a new process; return the JSON value on the last line of its output."""
    command = [sys.executable, script, *map(str, arguments)]
    process = subprocess.run(command, text=True, stdout=subprocess.PIPE, check=True)
    return json.loads(process.stdout.strip().splitlines()[-1])


def machine():
    """Processor, cores, memory, date."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return {"machine": f"{model}, {cores} cores, {gib:.0f} GiB", "date": time.strftime("%Y-%m-%d")}


def parser(description):
    """Argument parser with --output."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--output", help="file name, without extension, of the figures (JSON) and the plot (SVG)")
    return result


def write(output, plot, **results):
    """Write results as JSON with machine and date, and the figure that plot(pyplot) returns.

    Args:
        output: file name without extension; None: write nothing.
        plot: function of matplotlib.pyplot, or None for no figure.
        results: JSON values.
    """
    if not output:
        return
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    Path(f"{output}.json").write_text(json.dumps({**machine(), **results}, indent=1) + "\n")
    if plot is None:
        return
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plot(plt).savefig(f"{output}.svg")
