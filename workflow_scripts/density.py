"""Density of each cluster of one group.

Reads the activations and the clusters. Writes cluster and density, one row per cluster of the group.
"""

from coincide.workflow.job import start

config = start(snakemake)

import pandas as pd

from coincide.base.activation_store import Activations
from coincide.base.clustered_rows import ClusteredRows
from coincide.base.devices import pick_device
from coincide.base.tables import cluster_table, write_table
from coincide.selection.density import cluster_densities

labels = pd.read_parquet(snakemake.input.clusters)["cluster"].to_numpy()
clustered = ClusteredRows(Activations(snakemake.input.activations), labels)
group = clustered.group(int(snakemake.wildcards.cluster_group), config.selection.cluster_groups)
densities = cluster_densities(
    clustered,
    gamma=config.selection.gamma,
    clusters=group,
    device=pick_device(config.selection.device),
)
write_table(cluster_table("density", densities, group), snakemake.output[0])
