"""Divide the budget of a fraction among the clusters.

Reads the table of shares and, with constraints, the clusters and the manifest, with an earlier run its samples and
coreset. Writes cluster and budget, one row per cluster.
"""

from coincide.workflow.job import start

config = start(snakemake)

import numpy as np
import pandas as pd

from coincide.base.tables import write_table
from coincide.selection.constraints import read_bounds
from coincide.selection.growth import read_growth
from coincide.selection.select import budget_table

shares, fraction = pd.read_parquet(snakemake.input.shares), float(snakemake.wildcards.fraction)
members = {}
total = None
if config.selection.is_constrained:
    clusters = pd.read_parquet(snakemake.input.clusters)
    growth = read_growth(config, "coincide", fraction)
    bounds = read_bounds(
        config.selection.constraints, snakemake.input.manifest, clusters["sample_id"], fraction, growth
    )
    total = bounds.budget
    for name in ("kept", "excluded"):
        members[name] = np.bincount(clusters["cluster"][getattr(bounds, name)], minlength=len(shares))
write_table(budget_table(shares, fraction, total=total, **members), snakemake.output[0])
