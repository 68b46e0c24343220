"""One table of everything known about each cluster, with its budget for each fraction.

Reads the table of shares and the budgets of all fractions. Writes their columns side by side.
"""

from coincide.workflow.job import start

config = start(snakemake)

import pandas as pd

from coincide.base.tables import write_table

stats = pd.read_parquet(snakemake.input.shares)
for fraction, path in zip(snakemake.params.fractions, snakemake.input.budgets):
    stats[f"budget_{fraction}"] = pd.read_parquet(path)["budget"]
write_table(stats, snakemake.output[0])
