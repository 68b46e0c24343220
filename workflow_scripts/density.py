"""Density of the clusters of one group.

Reads the activations and the clusters. Writes cluster and density, one row per cluster of the group.
"""

from coincide.workflow.job import start

config = start(snakemake)

import pandas as pd

from coincide.base.activation_store import Activations
from coincide.base.devices import pick_device
from coincide.base.tables import column_table, write_table
from coincide.selection.density import density
from coincide.selection.select import cluster_group

labels = pd.read_parquet(snakemake.input.clusters)["cluster"].to_numpy()
group = cluster_group(labels, int(snakemake.wildcards.cluster_group), config.selection.cluster_groups)
values = density(
    Activations(snakemake.input.activations),
    labels,
    gamma=config.selection.gamma,
    clusters=group,
    device=pick_device(config.selection.device),
)
write_table(column_table("density", values, group), snakemake.output[0])
