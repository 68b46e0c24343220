"""Pick members of each cluster of one group within its budget, by greedy MMD.

Reads the activations, the clusters, the shares, the budgets and, with constraints, the manifest, with an earlier run
its samples and coreset. Writes the picked rows of the activations, with constraints on sources or text-only samples
beyond the budgets.
"""

from coincide.workflow.job import start

config = start(snakemake)

import pandas as pd

from coincide.base.activation_store import Activations
from coincide.base.clustered_rows import ClusteredRows
from coincide.base.devices import pick_device
from coincide.base.tables import write_table
from coincide.selection.constraints import read_bounds
from coincide.selection.growth import read_growth
from coincide.selection.picks import pick_members

clusters, constraints = pd.read_parquet(snakemake.input.clusters), config.selection.constraints
labels, fraction = clusters["cluster"].to_numpy(), float(snakemake.wildcards.fraction)
growth = read_growth(config, "coincide", fraction)
bounds = read_bounds(constraints, snakemake.input.manifest, clusters["sample_id"], fraction, growth)
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
    kept=bounds and bounds.kept,
    excluded=bounds and bounds.excluded,
    beyond_budget=constraints.has_bounds,
)
write_table(pd.DataFrame({"row": picks}), snakemake.output[0])
