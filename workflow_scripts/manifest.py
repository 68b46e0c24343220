"""Divide the rows of the dataset into usable samples and rejected ones.

Reads the dataset and the images. Writes the two tables; fails after writing the rejected samples if there are too many.
"""

from coincide.workflow.job import start

config = start(snakemake)

from coincide.base.tables import write_table
from coincide.dataset.formats import open_dataset
from coincide.dataset.manifest import build_manifest, check_rejected

manifest, rejected = build_manifest(
    open_dataset(snakemake.input.annotations),
    snakemake.input.images,
    config.dataset,
    clusters=config.clustering.k,  # an early check only; the manifest does not depend on it
    threads=snakemake.threads,
)
write_table(rejected, snakemake.output.rejected)
check_rejected(rejected, len(manifest) + len(rejected), config.dataset.max_rejected)
write_table(manifest, snakemake.output.manifest)
