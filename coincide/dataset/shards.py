"""Shards: one file of records per shard, so that a job reads only the records of its shard."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from coincide.base.files import replacing
from coincide.dataset.samples import Sample

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
            buffers[shard].append(json.dumps(line) + "\n")
            if len(buffers[shard]) == LINES_PER_WRITE:
                flush(shard)
        for shard in range(shards):
            flush(shard)


def read_shard(path: str | Path) -> list[Sample]:
    """Read the samples of a shard, in manifest order."""
    with open(path, encoding="utf-8") as file:
        lines = sorted(map(json.loads, file), key=lambda line: line["place"])
    return [Sample(line["sample_id"], line["position"], line["record"]) for line in lines]


def read_samples(paths: Iterable[str | Path], sample_ids: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row, record) of chosen samples, in the order of the files.

    Args:
        paths: files of all shards.
        sample_ids: ids of the chosen samples; `row` is the position in this sequence.
    """
    rows = {sample_id: row for row, sample_id in enumerate(sample_ids)}
    for path in paths:
        with open(path, encoding="utf-8") as file:
            for line in map(json.loads, file):
                if line["sample_id"] in rows:
                    yield rows[line["sample_id"]], line["record"]
