"""Divide the budget of a fraction among the clusters.

Reads the table of shares. Writes cluster and budget, one row per cluster.
"""

from coincide.workflow.job import start

config = start(snakemake)

import pandas as pd

from coincide.base.tables import write_table
from coincide.selection.select import budget_table

shares = pd.read_parquet(snakemake.input.shares)
write_table(budget_table(shares, float(snakemake.wildcards.fraction)), snakemake.output[0])
