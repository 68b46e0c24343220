"""Write a coreset for trainers that read images from files only.

Reads coreset.json with its dataset_info.json, and the images. Writes a folder with both and with the images that are
inside Parquet and tar files.
"""

from coincide.workflow.job import start

config = start(snakemake)

import pyarrow.parquet as pq

from coincide.dataset.export import export_coreset

export_coreset(
    snakemake.input.json,
    config.dataset.image_folders,
    snakemake.output[0],
    samples=pq.read_metadata(snakemake.input.coreset).num_rows,
)
