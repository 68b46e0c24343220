"""Write the report of a run: one HTML file that opens without a network.

Reads the summary, the manifest, the rejected samples, the sample metrics, the clusters, the first coreset, the dataset,
the figures, the benchmarks of all jobs and, with constraints, all coresets. Writes report.html.
"""

from coincide.workflow.job import start

config = start(snakemake)

import pandas as pd

from coincide.dataset.formats import open_dataset
from coincide.reporting.leaks import report_section
from coincide.reporting.report import write_report
from coincide.reporting.summary import constraint_table
from coincide.reporting.visual_necessity import read_visual_necessity

inputs, constraints = snakemake.input, config.selection.constraints
manifest = pd.read_parquet(inputs.manifest)
dataset = open_dataset(config.dataset.annotations)
coresets = {
    selection: pd.read_parquet(path, columns=["sample_id"])
    for selection, path in zip(snakemake.params.selections, inputs.coresets)
}
pairs, tasks, examples, duplicates = (
    pd.read_parquet(path) if (path := inputs.get(name)) else None
    for name in ("leaks", "leak_tasks", "leak_examples", "duplicates")
)
screening = report_section(
    pairs=pairs,
    tasks=tasks,
    examples=examples,
    duplicates=duplicates,
    manifest=pd.read_parquet(inputs.compared, columns=["source"]),
    leaks_mode=config.dataset.leaks,
    duplicates_mode=config.dataset.near_duplicates,
)
write_report(
    snakemake.output[0],
    summary=pd.read_parquet(inputs.summary),
    manifest=manifest,
    rejected=pd.read_parquet(inputs.rejected),
    clusters=pd.read_parquet(inputs.clusters),
    cluster_stats=pd.read_parquet(inputs.cluster_stats),
    coreset=pd.read_parquet(inputs.coreset),
    dataset=dataset,
    images=config.dataset.image_folders,
    figures={name: inputs[name] for name in ("performance", "budgets", "sources", "similarity")},
    benchmarks=snakemake.params.benchmarks,
    shared=snakemake.params.shared,
    settings=config.model_dump(),
    constraints=constraint_table(constraints, manifest, coresets) if constraints.is_set else None,
    necessity=read_visual_necessity(inputs.sample_metrics, manifest, dataset),
    screening=screening,
)
