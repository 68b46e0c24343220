"""Write the samples of a coreset in the format of a dataset that is not JSON: Parquet, tar, JSON lines."""

from coincide.jobs import start

start(snakemake.log[0], snakemake.threads)

import pandas as pd

from coincide.datasets import open_dataset, write_subset
from coincide.tables import coreset_positions

positions = coreset_positions(
    pd.read_parquet(snakemake.input.coreset, columns=["sample_id"]),
    pd.read_parquet(snakemake.input.manifest, columns=["sample_id", "position"]),
)
write_subset(open_dataset(snakemake.input.annotations), positions, snakemake.output[0])
