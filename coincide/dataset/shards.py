"""Shards: the records of a part of the samples, so that a job reads its own and no more."""

import json

import numpy as np

from coincide.base.files import replacing

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
