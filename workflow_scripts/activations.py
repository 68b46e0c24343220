"""Extract the activations of one shard with the reference model."""

from pathlib import Path

from coincide.jobs import start

start(snakemake.log[0], snakemake.threads)

from coincide.activations import extract_shard
from coincide.manifest import rejected_table
from coincide.tables import write_table

settings = snakemake.config[snakemake.wildcards.run]["reference_model"]
rejected = extract_shard(
    Path(snakemake.input.shards) / f"shard-{snakemake.wildcards.shard}.jsonl",
    snakemake.input.images,
    model_name=snakemake.params.name,
    revision=snakemake.params.revision,
    trust_remote_code=snakemake.params.trust_remote_code,
    layers=snakemake.params.layers,
    dtype=snakemake.params.dtype,
    attention=snakemake.params.attention,
    device=settings["device"],
    batch_tokens=settings["batch_tokens"],
    compiled=settings["compiled"],
    max_tokens=snakemake.params.max_tokens,
    output=snakemake.output.activations,
    scores=snakemake.params.scores,
    scores_output=snakemake.output.scores,
)
write_table(rejected_table(rejected), snakemake.output.rejected)
