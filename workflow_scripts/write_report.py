"""Write the report of a run: one HTML file that opens without a network.

Reads the summary and the results of the evaluations, the manifest, the rejected and held-out samples, the sample
metrics, the clusters, centroids and activations, the coresets with their digests, evaluation leaks and near-duplicates,
what the run takes over from an earlier one, the dataset, and the benchmarks of all jobs. Writes report.html.
"""

from coincide.workflow.job import start

config = start(snakemake)

import json
from pathlib import Path

import pandas as pd

from coincide.base.activation_store import Activations
from coincide.base.centroids import read_centroids
from coincide.dataset.formats import open_dataset
from coincide.reporting.growth import growth_section, read_run_growth
from coincide.reporting.leaks import report_section
from coincide.reporting.provenance import provenance_tables, repeat_commands, workflow_commit
from coincide.reporting.report import RunResults, write_report
from coincide.reporting.run_warnings import run_warnings
from coincide.reporting.summary import constraint_table, failure_lines
from coincide.reporting.visual_necessity import read_visual_necessity

inputs, params = snakemake.input, snakemake.params
commit = workflow_commit()
settings = config.model_dump(mode="json")
activations = Activations(inputs.activations)
tables = {name: pd.read_parquet(inputs[name]) for name in ("summary", "rejected", "clusters", "cluster_stats")}
tables["manifest"] = pd.read_parquet(inputs.manifest, columns=["sample_id", "source", "position", "n_images"])
coresets = {
    selection: pd.read_parquet(path, columns=["sample_id"])
    for selection, path in zip(params.selections, inputs.coresets)
}
without_clusters = {name: table for name, table in tables.items() if name != "clusters"}
screening = {
    name: pd.read_parquet(path) if (path := inputs.get(key)) else None
    for name, key in (
        ("pairs", "leaks"), ("tasks", "leak_tasks"), ("examples", "leak_examples"), ("duplicates", "duplicates")
    )
}  # fmt: skip
growth = read_run_growth(
    config,
    **{name: inputs[name] for name in ("manifest", "activations", "clusters")},
    coresets=dict(zip(params.selections, inputs.coresets)),
)
warnings = run_warnings(
    **without_clusters,
    coresets=coresets,
    learned_above=config.evaluation.learned_above,
    failures=failure_lines(inputs.results),
    demo_settings=params.demo_settings,
    leaks=screening["pairs"],
    leak_tasks=screening["tasks"],
    duplicates=screening["duplicates"],
    growth=growth,
    dropped=[name for name in ("leaks", "near_duplicates") if getattr(config.dataset, name) == "drop"],
)
dataset = open_dataset(config.dataset.annotations)
constraints = config.selection.constraints
write_report(
    snakemake.output[0],
    RunResults(
        settings=settings,
        **tables,
        held_out=len(pd.read_parquet(inputs.holdout, columns=["sample_id"])),
        centroids=read_centroids(inputs.centroids),
        activations=activations,
        coresets=coresets,
        dataset=dataset,
        constraints=constraint_table(constraints, tables["manifest"], coresets) if constraints.is_set else None,
        growth=growth_section(growth),
        necessity=read_visual_necessity(inputs.sample_metrics, tables["manifest"], dataset),
        screening=report_section(
            **screening,
            manifest=pd.read_parquet(inputs.compared, columns=["source"]),
            leaks_mode=config.dataset.leaks,
            duplicates_mode=config.dataset.near_duplicates,
        ),
        images=config.dataset.image_folders,
        warnings=warnings,
        benchmarks=params.benchmarks,
        all_benchmarks=params.all_benchmarks,
        shared=params.shared,
        provenance=provenance_tables(
            settings,
            preflight=json.loads(Path(inputs.preflight).read_text()),
            annotations=json.loads(Path(params.annotation_digests).read_text()),
            activations=activations,
            digests={
                key: Path(path).read_text().split()[0]
                for key, path in zip(params.selections, params.digests)
                if Path(path).exists()
            },
            commit=commit,
        ),
        commands=repeat_commands(config.run, commit),
        links={"Browse the clusters": "browser/index.html"}
        if Path(snakemake.output[0]).with_name("browser").joinpath("index.html").exists()
        else {},
    ),
)
