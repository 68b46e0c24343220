"""Shards: the records of a part of the samples, so that a job reads its own and no more."""

import json

from coincide.files import replacing


def write_shards(records, manifest, shards, folder):
    """Write each shard's records as JSON lines, in manifest order: shard-NNNNN.jsonl.

    Args:
        records: list of LLaVA records, the dataset.
        manifest: table with columns sample_id, shard, position.
        shards: number of shards.
        folder: folder to write.
    """
    with replacing(folder) as part:
        part.mkdir()
        for shard in range(shards):
            rows = manifest[manifest["shard"] == shard]
            with open(part / f"shard-{shard:05d}.jsonl", "w", encoding="utf-8") as file:
                for sample_id, position in zip(rows["sample_id"], rows["position"]):
                    line = {"sample_id": sample_id, "position": position, "record": records[position]}
                    file.write(json.dumps(line) + "\n")


def read_shard(path):
    """Read a shard: list of dicts of sample_id, position, record."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]
