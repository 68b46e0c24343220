"""Time and peak memory of the manifest and the shards of a dataset of any size, in a process of their own.

    .venv/bin/python bench/manifest.py [--rows 4000000] [--output bench/results/manifest]

The dataset is JSON lines of LLaVA-like records, two thirds with an image, 1.65 samples an image; whether
images exist is not looked at, which is a matter of the file system. Beside it: reading it whole with
json.loads into a list, as LLaVA's scripts do.
"""

import json
import tempfile
import time
from pathlib import Path

import numpy as np
from common import in_new_process, parser, peak_memory, write

from coincide.base.sections import Dataset
from coincide.dataset import manifest as module
from coincide.dataset.formats import open_dataset
from coincide.dataset.shards import write_shards


def write_dataset(path, rows):
    """Write the dataset."""
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


def ours(path, folder):
    """Seconds of manifest and shards, and peak memory."""
    module.open_image = lambda *_, **__: None
    before, began = peak_memory(), time.perf_counter()
    dataset = Dataset(annotations="-", shards=64, decode_images=False)
    table, rejected = module.build_manifest(open_dataset(path), folder, dataset)
    middle = time.perf_counter()
    table.to_parquet(Path(folder) / "manifest.parquet")
    write_shards(open_dataset(path), table, 64, Path(folder) / "shards")
    end = time.perf_counter()
    return {
        "samples": len(table), "rejected": len(rejected), "manifest_s": middle - began, "shards_s": end - middle,
        "peak_bytes": peak_memory(), "before_bytes": before,
    }  # fmt: skip


def whole(path, folder):
    """Seconds and peak memory of reading the dataset into a list."""
    before, began = peak_memory(), time.perf_counter()
    records = [json.loads(line) for line in open(path)]  # noqa: SIM115
    return {"samples": len(records), "manifest_s": time.perf_counter() - began, "shards_s": 0,
            "peak_bytes": peak_memory(), "before_bytes": before}  # fmt: skip


def main():
    """Measure, print, write."""
    arguments = parser(__doc__)
    arguments.add_argument("--rows", type=int, default=4_000_000)
    arguments.add_argument("--one", nargs=3, help="what, dataset, folder: in this process")
    options = arguments.parse_args()
    if options.one:
        print(json.dumps({"ours": ours, "whole": whole}[options.one[0]](*options.one[1:])))
        return
    rows = []
    print("| rows | | manifest, s | shards, s | peak memory, GiB |\n| --- | --- | --- | --- | --- |")
    for count in (options.rows // 4, options.rows):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "data.jsonl"
            write_dataset(path, count)
            for name in ("ours", "whole"):
                if name == "whole" and count * 5000 > 16e9:  # it would need more memory than there is
                    continue
                found = in_new_process(__file__, "--one", name, path, folder)
                rows.append({"rows": count, "what": name, "gigabytes": path.stat().st_size / 1e9, **found})
                print(
                    f"| {count:,} | {name} | {found['manifest_s']:.0f} | {found['shards_s']:.0f} "
                    f"| {found['peak_bytes'] / 2**30:.2f} |",
                    flush=True,
                )

    def plot(plt):
        figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
        for name in ("ours", "whole"):
            mine = [r for r in rows if r["what"] == name]
            axis.plot([r["rows"] for r in mine], [r["peak_bytes"] / 2**30 for r in mine], "o-", label=name)
        axis.set(xlabel="rows", ylabel="peak memory, GiB")
        axis.legend(frameon=False)
        return figure

    write(options.output, plot, rows=rows)


if __name__ == "__main__":
    main()
