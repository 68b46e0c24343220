"""Pick members of each cluster of one group within its budget, by greedy MMD.

Reads the activations, the clusters, the shares and the budgets. Writes the picked rows of the activations.
"""

from coincide.workflow.job import start

config = start(snakemake)

import pandas as pd

from coincide.base.activation_store import Activations
from coincide.base.clustered_rows import ClusteredRows
from coincide.base.devices import pick_device
from coincide.base.tables import write_table
from coincide.selection.picks import pick_members

labels = pd.read_parquet(snakemake.input.clusters)["cluster"].to_numpy()
stats = pd.read_parquet(snakemake.input.shares).merge(pd.read_parquet(snakemake.input.budget), on="cluster")
clustered = ClusteredRows(Activations(snakemake.input.activations), labels, len(stats))
picks = pick_members(
    clustered,
    stats,
    gamma=config.selection.gamma,
    clusters=clustered.group(int(snakemake.wildcards.cluster_group), config.selection.cluster_groups),
    within=config.selection.within,
    seed=config.clustering.seed,
    device=pick_device(config.selection.device),
)
write_table(pd.DataFrame({"row": picks}), snakemake.output[0])
