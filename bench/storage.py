"""Time writing and reading activations against np.save, np.load and a plain copy, in one run.

    .venv/bin/python bench/storage.py [--output bench/results/storage]

16,384 rows of 20,480 float16 numbers (671 MB). The files are in the page cache, so that the formats are
compared and not the disk. "clusters" reads the rows of random clusters of 66 rows, as density and picks
do. Then the same for several row-group sizes.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import best_of, parser, timed, write

from coincide.base.activation_store import ROW_GROUP, Activations, write_activations

ROWS, DIMENSION, CLUSTER = 16_384, 20_480, 66
GROUPS = (128, 512, 2048, 8192)
ROUNDS = 3


def fastest_write(path, function):
    """Seconds of the fastest of ROUNDS writes, each to a new file."""
    seconds = []
    for _ in range(ROUNDS):
        path.unlink(missing_ok=True)
        seconds.append(timed(function)[0])
    return min(seconds)


def numpy_file(folder, x, ids, clusters):
    """Seconds of np.save, of np.load, and of reading clusters from a memory map; bytes of the file."""
    path = folder / "rows.npy"
    writing = fastest_write(path, lambda: np.save(path, x))
    reading, _ = best_of(lambda: np.load(path), at_least=3)
    mapped = np.load(path, mmap_mode="r")
    fetching, _ = best_of(lambda: [mapped[np.sort(c)] for c in clusters], at_least=3)
    return {"write": writing, "read": reading, "clusters": fetching, "bytes": path.stat().st_size}


def activation_file(folder, x, ids, clusters, size=ROW_GROUP):
    """The same for an activation file with row groups of `size` rows, plus seconds to iterate and to verify."""
    path = folder / f"rows-{size}.parquet"
    starts = range(0, len(x), size)

    def save():
        blocks = ((ids[s : s + size], x[s : s + size]) for s in starts)
        write_activations(path, blocks, dimension=x.shape[1], metadata={"hidden_size": x.shape[1] // 2})

    writing = fastest_write(path, save)
    activations = Activations(path)
    reading, back = best_of(lambda: np.asarray(Activations(path)), at_least=3)
    assert (back == x).all()
    fetching, back = best_of(lambda: [activations.rows(c) for c in clusters], at_least=3)
    assert all((rows == x[c]).all() for rows, c in zip(back, clusters))
    walking, _ = best_of(lambda: sum(len(block) for block in activations), at_least=3)
    checking, _ = best_of(activations.verify)
    return {
        "write": writing,
        "read": reading,
        "clusters": fetching,
        "walk": walking,
        "verify": checking,
        "bytes": path.stat().st_size,
    }


def list_column(folder, x, ids, options):
    """The same for a column of fixed-size lists, as pyarrow writes it with these options."""
    path = folder / "list.parquet"
    column = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1])
    table = pa.table({"sample_id": pa.array(ids), "activation": column})
    writing, _ = timed(pq.write_table, table, path, row_group_size=ROW_GROUP, **options)

    def read():
        chunks = pq.read_table(path, columns=["activation"])["activation"].chunks
        return np.concatenate([np.array(chunk.flatten(), copy=True) for chunk in chunks])

    reading, _ = timed(read)
    return {"write": writing, "read": reading, "bytes": path.stat().st_size}


def main():
    """Measure, print, write."""
    options = parser(__doc__).parse_args()
    random = np.random.default_rng(0)
    x = random.standard_normal((ROWS, DIMENSION), dtype=np.float32).astype(np.float16)
    ids = [f"{i:08d}" for i in range(ROWS)]
    clusters = [random.choice(ROWS, CLUSTER, replace=False) for _ in range(40)]
    copying, _ = best_of(x.copy, at_least=2)
    row_bytes, copy_rate = DIMENSION * 2, x.nbytes / copying

    def speeds(seconds, rows=ROWS):
        """Speeds as shares of the speed of a plain copy; size of the file divided by the size of its numbers."""
        result = {"size": seconds["bytes"] / (rows * row_bytes)}
        for name, value in seconds.items():
            if name != "bytes":
                count = len(clusters) * CLUSTER if name == "clusters" else rows
                result[name] = count * row_bytes / value / copy_rate
        return result

    with tempfile.TemporaryDirectory() as temporary:
        folder, few = Path(temporary), 2048
        results = {"np.save, np.load": speeds(numpy_file(folder, x, ids, clusters))}
        groups = {size: speeds(activation_file(folder, x, ids, clusters, size)) for size in GROUPS}
        results["coincide (Parquet)"] = groups[ROW_GROUP]
        for name, settings in {
            "Parquet, list column, plain": {"compression": "none", "use_dictionary": False},
            "Parquet, list column, defaults": {},
        }.items():
            results[name] = speeds(list_column(folder, x[:few], ids[:few], settings), few)
    print(f"plain copy: {copy_rate / 1e9:.1f} GB/s = 1\n")
    print("| format | write | read all | fetch clusters of 66 | size |\n| --- | --- | --- | --- | --- |")
    for name, r in results.items():
        cluster = f"{r['clusters']:.2f}" if "clusters" in r else ""
        print(f"| {name} | {r['write']:.3f} | {r['read']:.3f} | {cluster} | {r['size']:.4f} |")
    print("\n| row group, rows | MB | write | read all | walk over blocks | fetch clusters | verify |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for size, r in groups.items():
        cells = " | ".join(f"{r[name]:.3f}" for name in ("write", "read", "walk", "clusters", "verify"))
        print(f"| {size:,} | {size * row_bytes / 1e6:.0f} | {cells} |")

    def plot(plt):
        figure, axis = plt.subplots(figsize=(7, 3.4), constrained_layout=True)
        for i, name in enumerate(("write", "read", "clusters")):
            values = [r.get(name, np.nan) for r in results.values()]
            axis.bar(np.arange(len(results)) + (i - 1) * 0.27, values, 0.25, label=name)
        axis.set_xticks(range(len(results)), [name.replace(", ", ",\n") for name in results], fontsize=8)
        axis.set(ylabel="speed, plain copy = 1", yscale="log")
        axis.legend(frameon=False)
        return figure

    write(options.output, plot, bytes=x.nbytes, copy_seconds=copying, formats=results, row_groups=groups)


if __name__ == "__main__":
    sys.exit(main())
