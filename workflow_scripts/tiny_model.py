"""Build a small model of the demo and train it briefly.

Reads the records that are reserved for it, and their images. Writes the model.
"""

from coincide.workflow.job import start

config = start(snakemake)

from coincide.dataset.formats import read_records
from coincide.demo.tiny_models import build_tiny_model

build_tiny_model(
    snakemake.wildcards.model,
    read_records(snakemake.input.records),
    snakemake.input.images,
    config.tiny_models[snakemake.wildcards.model],
    output=snakemake.output[0],
    checkpoints=f"{snakemake.params.checkpoints}/{snakemake.wildcards.model}",
)
