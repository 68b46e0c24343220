"""Extract the activations of one shard with the reference model.

Reads the shard's records and the images and, with dataset.extends, the activations of a finished run. Writes the
shard's activations, its rejected samples, and its sample metrics (an empty folder unless reference_model.sample_metrics
is set).
"""

from pathlib import Path

from coincide.workflow.job import start

config = start(snakemake)

from coincide.base.tables import write_table
from coincide.dataset.samples import rejected_table
from coincide.extraction.activations import extract_shard

rejected = extract_shard(
    Path(snakemake.input.shards) / f"shard-{snakemake.wildcards.shard}.jsonl",
    config.dataset.image_folders,
    config.reference_model,
    snakemake.output.activations,
    snakemake.output.sample_metrics,
    extends=config.dataset.extends,
)
write_table(rejected_table(rejected), snakemake.output.rejected)
