"""Extract the activations of one shard with the reference model."""

from coincide.jobs import start

start(snakemake.log[0], snakemake.threads)

from coincide.activations import extract_shard
from coincide.manifest import rejected_table
from coincide.tables import write_table

settings = snakemake.config["reference_model"]
rejected = extract_shard(
    snakemake.input.samples,
    snakemake.input.images,
    model_name=snakemake.params.model,
    layers=snakemake.params.layers,
    dtype=snakemake.params.dtype,
    device=settings["device"],
    batch_size=settings["batch_size"],
    max_tokens=snakemake.params.max_tokens,
    output=snakemake.output.activations,
    **snakemake.params.load,
)
write_table(rejected_table(rejected), snakemake.output.rejected)
