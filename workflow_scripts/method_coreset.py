"""Coreset of a baseline.

Reads the clusters, the activations, the artefacts that the method needs and, with constraints, the manifest, with an
earlier run its samples and coreset. Writes coreset.parquet.
"""

from functools import partial

from coincide.workflow.job import start

config = start(snakemake)

from coincide import methods
from coincide.base.tables import coreset_table, write_table
from coincide.methods._inputs import MethodInputs
from coincide.selection.budget import total_budget
from coincide.selection.constraints import constrain, read_bounds, reasons
from coincide.selection.growth import read_growth

method, fraction = snakemake.wildcards.method, float(snakemake.wildcards.fraction)
inputs = MethodInputs(
    snakemake.input.clusters,
    snakemake.input.activations,
    snakemake.input.sample_metrics,
    snakemake.input.clip_scores,
    snakemake.input.difficulty,
    method=method,
)
pick = partial(methods.pick, method, inputs, seed=config.selection.seed, values=snakemake.params.method_settings)
bounds = read_bounds(
    config.selection.constraints,
    snakemake.input.manifest,
    inputs.clusters["sample_id"],
    fraction,
    read_growth(config, method, fraction),
)
indices, scores = pick(count := bounds.budget if bounds else total_budget(fraction, len(inputs.clusters)))
columns = {}
if bounds:
    own = indices
    indices, is_added = constrain(lambda number: own if number == count else pick(number)[0], bounds)
    columns["constraint"] = reasons(bounds, indices, is_added)
write_table(coreset_table(inputs.clusters, indices, scores).assign(**columns), snakemake.output[0])
