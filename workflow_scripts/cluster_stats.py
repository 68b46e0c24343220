"""One table of all that is known of each cluster, with its budget for each fraction."""

from coincide.jobs import start

start(snakemake.log[0], snakemake.threads)

import pandas as pd

from coincide.tables import read_cluster_stats, write_table

stats = read_cluster_stats(
    snakemake.input.centroids,
    snakemake.input.transferability,
    snakemake.input.density,
    temperature=snakemake.params.temperature,
)
for fraction, path in zip(snakemake.params.fractions, snakemake.input.budgets):
    stats[f"budget_{fraction}"] = pd.read_parquet(path)["budget"]
write_table(stats, snakemake.output[0])
