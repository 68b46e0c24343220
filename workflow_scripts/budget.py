"""Divide the budget of a fraction among the clusters."""

from coincide.jobs import start

start(snakemake.log[0], snakemake.threads)

from coincide.coreset import add_budget
from coincide.tables import read_cluster_stats, write_table

stats = read_cluster_stats(
    snakemake.input.centroids,
    snakemake.input.transferability,
    snakemake.input.density,
    temperature=snakemake.params.temperature,
    weigh_density=snakemake.params.weigh_density,
)
stats = add_budget(stats, float(snakemake.wildcards.fraction), temperature=snakemake.params.temperature)
write_table(stats, snakemake.output[0])
