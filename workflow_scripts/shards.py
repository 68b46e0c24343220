"""Write each shard's records, so that an extraction job reads its own and no more."""

from coincide.jobs import start

start(snakemake.log[0], snakemake.threads)

import pandas as pd

from coincide.datasets import open_dataset
from coincide.shards import write_shards

write_shards(
    open_dataset(snakemake.input.annotations),
    pd.read_parquet(snakemake.input.manifest, columns=["sample_id", "shard", "position"]),
    snakemake.params.shards,
    snakemake.output[0],
)
