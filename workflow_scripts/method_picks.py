"""The picks of a method beside coincide."""

from coincide.jobs import start

start(snakemake.log[0], snakemake.threads)

from coincide.budget import total_budget
from coincide.methods import Tables, method
from coincide.tables import coreset_table, write_table

tables = Tables(
    snakemake.input.clusters,
    snakemake.input.activations,
    snakemake.input.scores,
    snakemake.input.clip_scores,
    snakemake.input.difficulty,
)
count = total_budget(float(snakemake.wildcards.fraction), len(tables.clusters))
picks = method(snakemake.wildcards.method).picks
indices, scores = picks(tables, count, seed=snakemake.params.seed, **snakemake.params.settings)
write_table(coreset_table(tables.clusters, indices, scores), snakemake.output[0])
