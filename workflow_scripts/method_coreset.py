"""Coreset of a baseline.

Reads the clusters, the activations and the artefacts that the method needs. Writes coreset.parquet.
"""

from coincide.workflow.job import start

config = start(snakemake)

from coincide import methods
from coincide.base.tables import coreset_table, write_table
from coincide.methods._inputs import MethodInputs
from coincide.selection.budget import total_budget

method = snakemake.wildcards.method
inputs = MethodInputs(
    snakemake.input.clusters,
    snakemake.input.activations,
    snakemake.input.sample_metrics,
    snakemake.input.clip_scores,
    snakemake.input.difficulty,
    method=method,
)
indices, scores = methods.pick(
    method,
    inputs,
    total_budget(float(snakemake.wildcards.fraction), len(inputs.clusters)),
    seed=config.selection.seed,
    values=snakemake.params.method_settings,
)
write_table(coreset_table(inputs.clusters, indices, scores), snakemake.output[0])
