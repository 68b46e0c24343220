"""Pick the members of every cluster that its budget allows, by greedy MMD."""

from coincide.jobs import start

start(snakemake.log[0], snakemake.threads)

import pandas as pd

from coincide.coreset import pick_members
from coincide.storage import Activations
from coincide.tables import coreset_table, write_table

clusters, stats = pd.read_parquet(snakemake.input.clusters), pd.read_parquet(snakemake.input.budget)
indices = pick_members(
    Activations(snakemake.input.activations),
    clusters["cluster"].to_numpy(),
    stats,
    gamma=snakemake.params.gamma,
)
scores = (stats["transferability"] / stats["density"]).to_numpy()[clusters["cluster"].to_numpy()]
write_table(coreset_table(clusters, indices, scores), snakemake.output[0])
