"""Density of the clusters of one group."""

from coincide.jobs import start

start(snakemake.log[0], snakemake.threads)

import pandas as pd

from coincide.coreset import cluster_group
from coincide.density import density
from coincide.devices import pick_device
from coincide.storage import Activations
from coincide.tables import column_table, write_table

settings = snakemake.config[snakemake.wildcards.run]["selection"]
labels = pd.read_parquet(snakemake.input.clusters)["cluster"].to_numpy()
group = cluster_group(labels, int(snakemake.wildcards.cluster_group), snakemake.params.cluster_groups)
values = density(
    Activations(snakemake.input.activations),
    labels,
    gamma=snakemake.params.gamma,
    clusters=group,
    device=pick_device(settings["device"]),
)
write_table(column_table("density", values, group), snakemake.output[0])
