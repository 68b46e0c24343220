"""Write each shard's records, so that an extraction job reads its own and no more."""

from coincide.jobs import start

start(snakemake.log[0], snakemake.threads)

import pandas as pd

from coincide.manifest import read_records
from coincide.shards import write_shards

write_shards(
    read_records(snakemake.input.annotations),
    pd.read_parquet(snakemake.input.manifest),
    snakemake.params.shards,
    snakemake.output[0],
)
