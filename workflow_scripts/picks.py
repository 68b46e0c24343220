"""Pick the members of the clusters of one group that their budgets allow, by greedy MMD."""

from coincide.jobs import start

start(snakemake.log[0], snakemake.threads)

import pandas as pd

from coincide.coreset import cluster_group, pick_members
from coincide.devices import pick_device
from coincide.storage import Activations
from coincide.tables import write_table

settings = snakemake.config[snakemake.wildcards.run]["selection"]
labels = pd.read_parquet(snakemake.input.clusters)["cluster"].to_numpy()
indices = pick_members(
    Activations(snakemake.input.activations),
    labels,
    pd.read_parquet(snakemake.input.budget),
    gamma=snakemake.params.gamma,
    clusters=cluster_group(labels, int(snakemake.wildcards.cluster_group), snakemake.params.cluster_groups),
    within=snakemake.params.within,
    seed=snakemake.params.seed,
    device=pick_device(settings["device"]),
)
write_table(pd.DataFrame({"row": indices}), snakemake.output[0])
