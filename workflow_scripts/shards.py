"""Write the records of each shard to a file, so that an extraction job reads only the records of its shard.

Reads the dataset and the manifest. Writes a folder with one JSON lines file per shard.
"""

from coincide.workflow.job import start

config = start(snakemake)

import pandas as pd

from coincide.dataset.formats import open_dataset
from coincide.dataset.shards import write_shards

write_shards(
    open_dataset(config.dataset.annotations),
    pd.read_parquet(snakemake.input.manifest, columns=["sample_id", "shard", "position"]),
    config.dataset.shards,
    snakemake.output[0],
)
