"""The coreset of a baseline.

Reads the clusters, the activations and what else the method needs. Writes coreset.parquet.
"""

from coincide.workflow.job import start

config = start(snakemake)

from coincide import methods
from coincide.base.tables import coreset_table, write_table
from coincide.methods._tables import Tables
from coincide.selection.budget import total_budget

tables = Tables(
    snakemake.input.clusters,
    snakemake.input.activations,
    snakemake.input.sample_metrics,
    snakemake.input.clip_scores,
    snakemake.input.difficulty,
)
count = total_budget(float(snakemake.wildcards.fraction), len(tables.clusters))
picks = methods.method(snakemake.wildcards.method).picks
indices, scores = picks(tables, count, seed=config.selection.seed, **snakemake.params.method_settings)
write_table(coreset_table(tables.clusters, indices, scores), snakemake.output[0])
