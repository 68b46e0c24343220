"""Density of the clusters of one group."""

from coincide.jobs import start

start(snakemake.log[0], snakemake.threads)

import pandas as pd

from coincide.coreset import cluster_group
from coincide.density import density
from coincide.storage import Activations
from coincide.tables import column_table, write_table

labels = pd.read_parquet(snakemake.input.clusters)["cluster"].to_numpy()
group = cluster_group(labels, int(snakemake.wildcards.cluster_group), snakemake.params.cluster_groups)
values = density(Activations(snakemake.input.activations), labels, gamma=snakemake.params.gamma, clusters=group)
write_table(column_table("density", values, group), snakemake.output[0])
