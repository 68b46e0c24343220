"""That the benchmark for GPUs runs: on the CPU, small, so that a machine with a GPU meets no slip of ours."""

import json
import os
import subprocess
import sys

from conftest import REPO


def test_the_gpu_benchmark_runs(tmp_path):
    sizes = ["--device", "cpu", "--rows", "3000", "--dimension", "64", "--clusters", "30"]
    done = subprocess.run(
        [sys.executable, REPO / "bench/gpu.py", *sizes, "--output", tmp_path / "gpu"],
        env={**os.environ, "PYTHONPATH": str(REPO)}, text=True, capture_output=True, check=True,
    )  # fmt: skip
    results = json.loads((tmp_path / "gpu.json").read_text())["results"]
    left_out = {name for name, figures in results.items() if "left_out" in figures}
    assert left_out <= {"flash_kmeans", "cuml", "extraction"}, done.stdout
    assert results["agreement"]["same_labels"] == 1
    assert results["density_and_picks"]["picks"] > 500
