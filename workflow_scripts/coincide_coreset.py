"""Coreset of coincide: the picks of all clusters, in the order of the shares, the largest first.

Reads the shares, the clusters and the picks of all groups of clusters. Writes coreset.parquet.
"""

from coincide.workflow.job import start

config = start(snakemake)

import pandas as pd

from coincide.base.tables import coreset_table, write_table
from coincide.selection.budget import scores_of
from coincide.selection.picks import rank_picks

clusters, shares = pd.read_parquet(snakemake.input.clusters), pd.read_parquet(snakemake.input.shares)
labels = clusters["cluster"].to_numpy()
picks = pd.concat([pd.read_parquet(path) for path in snakemake.input.picks])["row"].to_numpy()
indices = rank_picks(picks, labels, shares)
write_table(coreset_table(clusters, indices, scores_of(shares)[labels]), snakemake.output[0])
