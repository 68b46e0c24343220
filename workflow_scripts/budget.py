"""Divide the budget of a fraction among the clusters.

Reads the table of shares and, with constraints, the clusters and the manifest. Writes cluster and budget, one row per
cluster.
"""

from coincide.workflow.job import start

config = start(snakemake)

import numpy as np
import pandas as pd

from coincide.base.tables import write_table
from coincide.selection.constraints import read_bounds
from coincide.selection.select import budget_table

shares, fraction = pd.read_parquet(snakemake.input.shares), float(snakemake.wildcards.fraction)
members = {}
if config.selection.constraints.is_set:
    clusters = pd.read_parquet(snakemake.input.clusters)
    bounds = read_bounds(config.selection.constraints, snakemake.input.manifest, clusters["sample_id"], fraction)
    for name in ("kept", "excluded"):
        members[name] = np.bincount(clusters["cluster"][getattr(bounds, name)], minlength=len(shares))
write_table(budget_table(shares, fraction, **members), snakemake.output[0])
