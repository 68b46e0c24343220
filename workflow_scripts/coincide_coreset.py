"""Coreset of coincide: the picks of all clusters, in the order of the shares, the largest first.

Reads the shares, the clusters, the picks of all groups of clusters and, with constraints, the budgets and the manifest,
with an earlier run its samples and coreset. Writes coreset.parquet.
"""

from coincide.workflow.job import start

config = start(snakemake)

import pandas as pd

from coincide.base.tables import coreset_table, write_table
from coincide.selection.budget import scores_of
from coincide.selection.constraints import constrain_clusters, read_bounds, reasons
from coincide.selection.growth import read_growth
from coincide.selection.picks import rank_picks

clusters, shares = pd.read_parquet(snakemake.input.clusters), pd.read_parquet(snakemake.input.shares)
labels = clusters["cluster"].to_numpy()
picks = pd.concat([pd.read_parquet(path) for path in snakemake.input.picks])["row"].to_numpy()
indices, columns = rank_picks(picks, labels, shares), {}
fraction = float(snakemake.wildcards.fraction)
bounds = read_bounds(
    config.selection.constraints,
    snakemake.input.manifest,
    clusters["sample_id"],
    fraction,
    read_growth(config, "coincide", fraction),
)
if bounds:
    stats = shares.merge(pd.read_parquet(snakemake.input.budget), on="cluster")
    indices, is_added = constrain_clusters(indices, labels, stats, bounds)
    columns["constraint"] = reasons(bounds, indices, is_added)
write_table(coreset_table(clusters, indices, scores_of(shares)[labels]).assign(**columns), snakemake.output[0])
