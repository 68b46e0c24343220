"""Statistics of each cluster, with its budget for each fraction.

Reads the table of shares and the budgets of all fractions. Writes their columns in one table, one row per cluster.
"""

from coincide.workflow.job import start

config = start(snakemake)

import pandas as pd

from coincide.base.tables import write_table

stats = pd.read_parquet(snakemake.input.shares)
for fraction, path in zip(snakemake.params.fractions, snakemake.input.budgets):
    stats[f"budget_{fraction}"] = pd.read_parquet(path)["budget"]
write_table(stats, snakemake.output[0])
