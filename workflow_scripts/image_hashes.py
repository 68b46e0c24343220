"""Hash the images of the dataset, to find copies of them.

Reads the manifest, the dataset and its images. Writes a table with one row per image.
"""

from coincide.workflow.job import start

config = start(snakemake)

import pandas as pd

from coincide.dataset.duplicates import all_image_names, sample_records
from coincide.dataset.formats import open_dataset
from coincide.dataset.image_hashes import write_image_hashes

manifest = pd.read_parquet(snakemake.input.manifest)
write_image_hashes(
    all_image_names(sample_records(open_dataset(config.dataset.annotations), manifest)),
    config.dataset.image_folders,
    snakemake.output[0],
    follow_links=config.dataset.follow_links,
    processes=snakemake.threads,
)
