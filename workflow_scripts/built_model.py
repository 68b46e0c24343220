"""Build a small model and train it briefly on the samples set aside for it."""

from coincide.jobs import start

start(snakemake.log[0], snakemake.threads)

from coincide.datasets import read_records
from coincide.models import build_trained_model

build_trained_model(
    read_records(snakemake.input.records),
    snakemake.input.images,
    snakemake.params.model,
    output=snakemake.output[0],
    checkpoints=f"{snakemake.params.checkpoints}/{snakemake.wildcards.model}",
)
