"""CLIP scores of one shard."""

from pathlib import Path

from coincide.jobs import start

start(snakemake.log[0], snakemake.threads)

from coincide.clip import score_shard
from coincide.shards import read_shard
from coincide.tables import write_table

settings = snakemake.config[snakemake.wildcards.run]["clip_model"]
table = score_shard(
    read_shard(Path(snakemake.input.shards) / f"shard-{snakemake.wildcards.shard}.jsonl"),
    snakemake.input.images,
    name=snakemake.params.name,
    revision=snakemake.params.revision,
    dtype=snakemake.params.dtype,
    device=settings["device"],
    batch_size=settings["batch_size"],
)
write_table(table, snakemake.output[0])
