"""Divide the budget of a fraction among the clusters.

Reads the table of shares. Writes cluster and budget, one row per cluster.
"""

from coincide.workflow.job import start

config = start(snakemake)

import pandas as pd

from coincide.base.tables import write_table
from coincide.selection.select import budget_table

shares = pd.read_parquet(snakemake.input.shares)
fraction = float(snakemake.wildcards.fraction)
table = budget_table(shares, fraction, temperature=config.selection.temperature, budget=config.selection.budget)
write_table(table, snakemake.output[0])
