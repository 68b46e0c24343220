"""Write the samples of a coreset as LLaVA JSON, ready for a trainer."""

from coincide.jobs import start

start(snakemake.log[0], snakemake.threads)

import pandas as pd

from coincide.datasets import coreset_records, open_dataset
from coincide.tables import coreset_positions, write_records

positions = coreset_positions(
    pd.read_parquet(snakemake.input.coreset, columns=["sample_id"]),
    pd.read_parquet(snakemake.input.manifest, columns=["sample_id", "position"]),
)
write_records(coreset_records(open_dataset(snakemake.input.annotations), positions), snakemake.output[0])
