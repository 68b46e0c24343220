"""Time and peak memory of building the manifest and the shards of a large dataset.

    .venv/bin/python bench/manifest.py [--rows 4000000] [--output bench/results/manifest]

The dataset is a JSON lines file of LLaVA-like records. Two thirds have an image, with 1.65 samples per image. Images
are not checked, because that only measures the file system. For comparison: reading the dataset into a list with
json.loads, as LLaVA's scripts do. Each measurement runs in a new process.
"""

import json
import tempfile
import time
from pathlib import Path

import numpy as np
from common import in_new_process, parser, peak_memory, write

from coincide.base.sections import Dataset
from coincide.dataset import manifest
from coincide.dataset.formats import open_dataset
from coincide.dataset.shards import write_shards

SHARDS = 64
LIST_BYTES_PER_ROW = 5000  # memory that a list of records takes, at most
LIST_BYTES = 16e9  # larger lists are not measured


def write_dataset(path, rows):
    """Write a dataset of this many rows."""
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(5.5, 0.8, rows).astype(int).clip(10, 4000)
    images = rng.integers(0, max(1, int(rows * 2 / 3 / 1.65)), rows)
    words = "what is to be seen on this picture and how many of them are there " * 80
    with open(path, "w") as file:
        for i in range(rows):
            with_image = i % 3 > 0
            turns = [
                {"from": "human", "value": "<image>\n" * with_image + words[: lengths[i] // 3]},
                {"from": "gpt", "value": words[: lengths[i]]},
            ]
            record = {"id": f"{i:012d}", "conversations": turns}
            if with_image:
                record["image"] = f"coco/train2017/{images[i]:012d}.jpg"
            file.write(json.dumps(record) + "\n")


def measure_manifest(path, folder):
    """Time of the manifest and of the shards in seconds, and peak memory."""
    manifest.check_image_header = lambda folder, name: None
    memory_before, start = peak_memory(), time.perf_counter()
    dataset = Dataset(annotations="-", shards=SHARDS, decode_images=False)
    samples, rejected = manifest.build_manifest(open_dataset(path), folder, dataset)
    manifest_end = time.perf_counter()
    samples.to_parquet(Path(folder) / "manifest.parquet")
    write_shards(open_dataset(path), samples, SHARDS, Path(folder) / "shards")
    shards_end = time.perf_counter()
    return {
        "samples": len(samples),
        "rejected": len(rejected),
        "manifest_s": manifest_end - start,
        "shards_s": shards_end - manifest_end,
        "peak_bytes": peak_memory(),
        "before_bytes": memory_before,
    }


def measure_list(path, folder):
    """Time in seconds and peak memory of reading the dataset into a list."""
    memory_before, start = peak_memory(), time.perf_counter()
    records = [json.loads(line) for line in open(path)]  # noqa: SIM115
    return {
        "samples": len(records),
        "manifest_s": time.perf_counter() - start,
        "shards_s": 0,
        "peak_bytes": peak_memory(),
        "before_bytes": memory_before,
    }


MEASUREMENTS = {"ours": measure_manifest, "whole": measure_list}  # under the names in bench/results


def main():
    """Run the benchmark: print the table, write results and plot."""
    arguments = parser(__doc__)
    arguments.add_argument("--rows", type=int, default=4_000_000)
    arguments.add_argument("--measure", nargs=3, help="measurement, dataset, folder: run in this process")
    options = arguments.parse_args()
    if options.measure:
        name, path, folder = options.measure
        print(json.dumps(MEASUREMENTS[name](path, folder)))
        return
    rows = []
    print("| rows | | manifest, s | shards, s | peak memory, GiB |\n| --- | --- | --- | --- | --- |")
    for count in (options.rows // 4, options.rows):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "data.jsonl"
            write_dataset(path, count)
            for name in MEASUREMENTS:
                if name == "whole" and count * LIST_BYTES_PER_ROW > LIST_BYTES:
                    continue
                result = in_new_process(__file__, "--measure", name, path, folder)
                rows.append({"rows": count, "what": name, "gigabytes": path.stat().st_size / 1e9, **result})
                print(
                    f"| {count:,} | {name} | {result['manifest_s']:.0f} | {result['shards_s']:.0f} "
                    f"| {result['peak_bytes'] / 2**30:.2f} |",
                    flush=True,
                )

    def plot(plt):
        figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
        for name in MEASUREMENTS:
            curve = [row for row in rows if row["what"] == name]
            axis.plot([row["rows"] for row in curve], [row["peak_bytes"] / 2**30 for row in curve], "o-", label=name)
        axis.set(xlabel="rows", ylabel="peak memory, GiB")
        axis.legend(frameon=False)
        return figure

    write(options.output, plot, rows=rows)


if __name__ == "__main__":
    main()
