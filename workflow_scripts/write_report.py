"""Write the report of a run: one HTML file that opens without a network.

Reads the summary, the manifest, the rejected samples, the clusters, the first coreset, the dataset, the figures and
the benchmarks of all jobs. Writes report.html.
"""

from coincide.workflow.job import start

config = start(snakemake)

import pandas as pd

from coincide.dataset.formats import open_dataset
from coincide.reporting.leaks import report_section
from coincide.reporting.report import write_report

inputs = snakemake.input
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
    manifest=pd.read_parquet(inputs.manifest),
    rejected=pd.read_parquet(inputs.rejected),
    clusters=pd.read_parquet(inputs.clusters),
    cluster_stats=pd.read_parquet(inputs.cluster_stats),
    coreset=pd.read_parquet(inputs.coreset),
    dataset=open_dataset(config.dataset.annotations),
    images=config.dataset.image_folders,
    figures={name: inputs[name] for name in ("performance", "budgets", "sources", "similarity")},
    benchmarks=snakemake.params.benchmarks,
    shared=snakemake.params.shared,
    settings=config.model_dump(),
    screening=screening,
)
