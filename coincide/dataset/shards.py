"""Shards: one file of records per shard, so that a job reads only the records of its shard."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from coincide.base.files import replacing

LINES_PER_WRITE = 64


def write_shards(records: Iterable[Any], manifest: pd.DataFrame, shards: int, folder: str | Path) -> None:
    """Write the records of each shard as JSON lines: shard-NNNNN.jsonl.

    The dataset is read once and a few lines per shard are buffered, so the lines of a file are in the order of the
    dataset, not of the manifest; `place` is the row in the manifest.

    Args:
        records: LLaVA records of the whole dataset.
        manifest: table with columns sample_id, shard, position.
        shards: number of shards.
        folder: folder to write.
    """
    manifest_rows = np.full(int(manifest["position"].max()) + 1, -1)  # by position; -1 for rejected samples
    manifest_rows[manifest["position"]] = np.arange(len(manifest))
    sample_ids, sample_shards = manifest["sample_id"], manifest["shard"].to_numpy()
    with replacing(folder) as temporary_folder:
        temporary_folder.mkdir()
        buffers: list[list[str]] = [[] for _ in range(shards)]

        def flush(shard):
            # opened for each write: there may be more shards than files that a process may hold open
            with open(temporary_folder / f"shard-{shard:05d}.jsonl", "a", encoding="utf-8") as file:
                file.writelines(buffers[shard])
            buffers[shard].clear()

        for position, record in zip(range(len(manifest_rows)), records):
            row = manifest_rows[position]
            if row < 0:
                continue
            line = {"sample_id": sample_ids[row], "position": position, "place": int(row), "record": record}
            shard = sample_shards[row]
            buffers[shard].append(json.dumps(line, default=str) + "\n")
            if len(buffers[shard]) == LINES_PER_WRITE:
                flush(shard)
        for shard in range(shards):
            flush(shard)


def read_shard(path):
    """Read a shard: list of dicts of sample_id, position, record, in manifest order."""
    with open(path, encoding="utf-8") as file:
        lines = sorted(map(json.loads, file), key=lambda line: line["place"])
    return [{name: line[name] for name in ("sample_id", "position", "record")} for line in lines]


def read_samples(paths, sample_ids):
    """Yield (row, record) of the samples with these ids, row being their place among them, from all shards.

    Args:
        paths: files of all shards.
        sample_ids: of the samples wanted; of the others nothing is yielded.
    """
    row = {sample_id: i for i, sample_id in enumerate(sample_ids)}
    for path in paths:
        with open(path, encoding="utf-8") as file:
            for line in map(json.loads, file):
                if line["sample_id"] in row:
                    yield row[line["sample_id"]], line["record"]
