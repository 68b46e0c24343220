"""Shards: the records of a part of the samples, so that a job reads its own and no more."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from coincide.base.files import replacing
from coincide.dataset.samples import Sample

LINES_AT_ONCE = 64


def write_shards(records, manifest, shards, folder):
    """Write each shard's records as JSON lines: shard-NNNNN.jsonl.

    The dataset is read once, and a record is written as it comes: lines are in the dataset's order.

    Args:
        records: iterable of LLaVA records, the dataset.
        manifest: table with columns sample_id, shard, position.
        shards: number of shards.
        folder: folder to write.
    """
    place = np.full(int(manifest["position"].max()) + 1, -1)
    place[manifest["position"]] = np.arange(len(manifest))
    sample_ids, of_shard = manifest["sample_id"], manifest["shard"].to_numpy()
    with replacing(folder) as part:
        part.mkdir()
        waiting = [[] for _ in range(shards)]

        def flush(shard):
            with open(part / f"shard-{shard:05d}.jsonl", "a", encoding="utf-8") as file:
                file.writelines(waiting[shard])
            waiting[shard] = []

        for position, record in zip(range(len(place)), records):
            row = place[position]
            if row < 0:
                continue
            line = {"sample_id": sample_ids[row], "position": position, "place": int(row), "record": record}
            shard = of_shard[row]
            waiting[shard].append(json.dumps(line, default=str) + "\n")
            if len(waiting[shard]) == LINES_AT_ONCE:
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
