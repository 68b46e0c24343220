"""One table of all that is known of each cluster, with its budget for each fraction."""

from coincide.jobs import start

start(snakemake.log[0], snakemake.threads)

import pandas as pd

from coincide.tables import write_table

budgets = [pd.read_parquet(path) for path in snakemake.input.budgets]
stats = budgets[0].drop(columns="budget")
for fraction, table in zip(snakemake.params.fractions, budgets):
    stats[f"budget_{fraction}"] = table["budget"]
write_table(stats, snakemake.output[0])
