"""Pick members of the clusters of one group, as many as their budgets allow, by greedy MMD.

Reads the activations, the clusters, the shares and the budgets. Writes rows of the activations.
"""

from coincide.workflow.job import start

config = start(snakemake)

import pandas as pd

from coincide.base.activation_store import Activations
from coincide.base.devices import pick_device
from coincide.base.tables import write_table
from coincide.selection.select import cluster_group, pick_members

labels = pd.read_parquet(snakemake.input.clusters)["cluster"].to_numpy()
stats = pd.read_parquet(snakemake.input.shares).merge(pd.read_parquet(snakemake.input.budget), on="cluster")
indices = pick_members(
    Activations(snakemake.input.activations),
    labels,
    stats,
    gamma=config.selection.gamma,
    clusters=cluster_group(labels, int(snakemake.wildcards.cluster_group), config.selection.cluster_groups),
    within=config.selection.within,
    seed=config.clustering.seed,
    device=pick_device(config.selection.device),
)
write_table(pd.DataFrame({"row": indices}), snakemake.output[0])
