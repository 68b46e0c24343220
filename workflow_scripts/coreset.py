"""Write a coreset in the dataset's own format, ready for a trainer."""

from coincide.jobs import start

start(snakemake.log[0], snakemake.threads)

import pandas as pd

from coincide.manifest import read_records
from coincide.tables import coreset_records, write_json

records = coreset_records(
    pd.read_parquet(snakemake.input.coreset),
    pd.read_parquet(snakemake.input.manifest),
    read_records(snakemake.input.annotations),
)
write_json(records, snakemake.output[0])
