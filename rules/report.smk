# Summary of the scores, figures, and the report that a person looks at.


rule summary:
    input:
        results=lambda wildcards: evaluations(wildcards.run),
        rejected=made_by("merge", "rejected.parquet"),
        manifest=made_by("merge", "manifest.parquet"),
        coresets=lambda wildcards: coresets(wildcards.run, "coreset.parquet"),
    output:
        parquet="results/{run}/summary.parquet",
        csv=report(
            "results/{run}/summary.csv",
            caption="../docs/captions/summary.rst",
            category="Scores",
            labels={"table": "scores and relative performance"},
        ),
        text="results/{run}/summary.md",
    log:
        "results/{run}/logs/summary.log",
    benchmark:
        "results/{run}/benchmarks/summary.tsv"
    conda:
        "../envs/report.yaml"
    envmodules:
        *MODULES.report,
    params:
        report="results/{run}/report.html",
        learned_above=setting("evaluation.learned_above"),
        selections=lambda wildcards: selections(wildcards.run),
    script:
        "../workflow_scripts/summary.py"


rule figures:
    input:
        summary="results/{run}/summary.parquet",
        cluster_stats="results/{run}/cluster_stats.parquet",
        centroids=made_by("clusters", "centroids.parquet"),
        activations=made_by("merge", "activations.parquet"),
        manifest=made_by("merge", "manifest.parquet"),
        coresets=lambda wildcards: coresets(wildcards.run, "coreset.parquet"),
    output:
        performance=report(
            "results/{run}/figures/performance.svg",
            caption="../docs/captions/performance.rst",
            category="Scores",
            labels={"figure": "relative performance against fraction"},
        ),
        budgets=report(
            "results/{run}/figures/budgets.svg",
            caption="../docs/captions/budgets.rst",
            category="Selection",
            labels={"figure": "cluster sizes against budgets"},
        ),
        sources=report(
            "results/{run}/figures/sources.svg",
            caption="../docs/captions/sources.rst",
            category="Selection",
            labels={"figure": "make-up of the coresets by source"},
        ),
        similarity=report(
            "results/{run}/figures/similarity.svg",
            caption="../docs/captions/similarity.rst",
            category="Selection",
            labels={"figure": "similarity of the clusters"},
        ),
    log:
        "results/{run}/logs/figures.log",
    benchmark:
        "results/{run}/benchmarks/figures.tsv"
    conda:
        "../envs/report.yaml"
    envmodules:
        *MODULES.report,
    params:
        blocks=setting("selection.blocks"),
        selections=lambda wildcards: selections(wildcards.run),
    script:
        "../workflow_scripts/figures.py"


rule report:
    input:
        summary="results/{run}/summary.parquet",
        rejected=made_by("merge", "rejected.parquet"),
        manifest=made_by("merge", "manifest.parquet"),
        clusters=made_by("clusters", "clusters.parquet"),
        cluster_stats="results/{run}/cluster_stats.parquet",
        coreset=lambda wildcards: coresets(wildcards.run, "coreset.parquet")[0],
        annotations=given("dataset.annotations"),
        images=given_once("dataset.images"),
        performance="results/{run}/figures/performance.svg",
        budgets="results/{run}/figures/budgets.svg",
        sources="results/{run}/figures/sources.svg",
        similarity="results/{run}/figures/similarity.svg",
    output:
        report(
            "results/{run}/report.html",
            caption="../docs/captions/report.rst",
            category="Report",
            labels={"page": "the whole report"},
        ),
    log:
        "results/{run}/logs/report.log",
    conda:
        "../envs/report.yaml"
    envmodules:
        *MODULES.report,
    params:
        benchmarks=lambda wildcards: benchmark_folders(wildcards.run),
        shared=lambda wildcards: runs.shared(wildcards.run),
    script:
        "../workflow_scripts/report.py"


# The premise of the method, measured: snakemake … transfer_check
rule transfer_check_of_run:
    input:
        activations=made_by("merge", "activations.parquet"),
        clusters=made_by("clusters", "clusters.parquet"),
        centroids=made_by("clusters", "centroids.parquet"),
        shards=made_by("shards", "shards"),
        images=given_once("dataset.images"),
        model=model_files("reference_model"),
    output:
        pairs="results/{run}/transfer_check/pairs.parquet",
        text="results/{run}/transfer_check/transfer_check.md",
        figure="results/{run}/transfer_check/transfer.svg",
    log:
        "results/{run}/logs/transfer_check.log",
    benchmark:
        "results/{run}/benchmarks/transfer_check.tsv"
    conda:
        "../envs/finetune.yaml"
    envmodules:
        *MODULES.finetune,
    threads: 64
    params:
        name=setting("reference_model.name"),
        revision=setting("reference_model.revision"),
        trust_remote_code=setting("reference_model.trust_remote_code"),
        blocks=setting("selection.blocks"),
        transfer_check=setting("transfer_check"),
    script:
        "../workflow_scripts/transfer_check.py"


rule transfer_check:
    input:
        expand("results/{run}/transfer_check/transfer_check.md", run=runs),


# All runs of the config side by side: snakemake … comparison
rule comparison:
    input:
        summaries=expand("results/{run}/summary.parquet", run=runs),
    output:
        text=f"{COMPARISON}/comparison.md",
        intervals=f"{COMPARISON}/intervals.csv",
        paired=f"{COMPARISON}/paired.csv",
        ranks=f"{COMPARISON}/ranks.csv",
        costs=f"{COMPARISON}/costs.csv",
        curves=f"{COMPARISON}/curves.svg",
        pareto=f"{COMPARISON}/pareto.svg",
        tasks=f"{COMPARISON}/tasks.svg",
    log:
        f"{COMPARISON}/comparison.log",
    benchmark:
        f"{COMPARISON}/comparison.tsv"
    conda:
        "../envs/report.yaml"
    envmodules:
        *MODULES.report,
    params:
        benchmarks={run: benchmarks_read(run) for run in runs},
        variants={
            run: (runs.setting(run, "variant"), runs.setting(run, "replicate"))
            for run in runs
        },
        learned_above=ANY_RUN.evaluation.learned_above,
    script:
        "../workflow_scripts/comparison.py"
