"""Summarise the scores of all models as relative performance.

Reads the results of all evaluations, the manifest, the rejected samples, the activations' metadata, the clusters and
the coresets, and what the run takes over from an earlier one. Writes the scores of every model on every task as Parquet
and CSV, and the headline table with warnings as Markdown.
"""

from coincide.workflow.job import start

config = start(snakemake)

import pandas as pd

from coincide.base.files import replacing
from coincide.base.tables import write_table
from coincide.reporting.growth import growth_lines, growth_warnings, read_run_growth
from coincide.reporting.leaks import duplicate_lines, leak_lines
from coincide.reporting.summary import (
    as_text,
    constraint_table,
    failure_lines,
    read_results,
    relative_performance,
)
from coincide.selection.budget import spread_text

summary = relative_performance(read_results(snakemake.input.results), learned_above=config.evaluation.learned_above)
write_table(summary, snakemake.output.parquet)
with replacing(snakemake.output.csv) as path:
    summary.to_csv(path, index=False)
manifest = pd.read_parquet(snakemake.input.manifest, columns=["sample_id", "source", "n_images"])
coresets = {
    selection: pd.read_parquet(path, columns=["sample_id"])
    for selection, path in zip(snakemake.params.selections, snakemake.input.coresets)
}
constraints = config.selection.constraints
clusters = [spread_text(pd.read_parquet(snakemake.input.shares))]
growth = read_run_growth(
    config,
    **{name: snakemake.input[name] for name in ("manifest", "activations", "clusters")},
    coresets=dict(zip(snakemake.params.selections, snakemake.input.coresets)),
)
clusters += growth_lines(growth)
screening = []
if leaks := snakemake.input.get("leaks"):
    tasks = pd.read_parquet(snakemake.input.leak_tasks)
    screening += leak_lines(pd.read_parquet(leaks), tasks, config.dataset.leaks)
if duplicates := snakemake.input.get("duplicates"):
    screening += duplicate_lines(pd.read_parquet(duplicates), config.dataset.near_duplicates)
text = as_text(
    summary,
    pd.read_parquet(snakemake.input.rejected),
    manifest,
    coresets,
    clusters="\n\n".join(clusters),
    report=snakemake.params.report,
    failures=failure_lines(snakemake.input.results),
    warnings=[*snakemake.params.demo_settings, *(f"{text}; {fix}" for text, fix in growth_warnings(growth))],
    constraints=constraint_table(constraints, manifest, coresets) if constraints.is_set else None,
    screening=screening,
    held_out=len(pd.read_parquet(snakemake.input.holdout, columns=["sample_id"])),
)
with replacing(snakemake.output.text) as path:
    path.write_text(text)
