# Summary of the scores, figures, the report, and the cluster browser.


rule summary:
    input:
        results=lambda wildcards: evaluations(wildcards.run),
        rejected=stage_output("merge", "rejected.parquet"),
        manifest=stage_output("merge", "manifest.parquet"),
        holdout=stage_output("manifest", "samples/holdout.parquet"),
        shares=stage_output("shares", "shares.parquet"),
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
        "../envs/reporting.yaml"
    envmodules:
        *MODULES.reporting,
    params:
        **settings("summary"),
        report="results/{run}/report.html",
        demo_settings=lambda wildcards: demo_settings(runs.configs[wildcards.run]),
        selections=lambda wildcards: selections(wildcards.run),
    script:
        "../workflow_scripts/summary.py"


rule figures:
    input:
        summary="results/{run}/summary.parquet",
        cluster_stats="results/{run}/cluster_stats.parquet",
        centroids=stage_output("clusters", "centroids.parquet"),
        activations=stage_output("merge", "activations.parquet"),
        manifest=stage_output("merge", "manifest.parquet"),
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
        "../envs/reporting.yaml"
    envmodules:
        *MODULES.reporting,
    params:
        **settings("figures"),
        selections=lambda wildcards: selections(wildcards.run),
    script:
        "../workflow_scripts/figures.py"


rule write_report:
    input:
        preflight=checked,
        summary="results/{run}/summary.parquet",
        rejected=stage_output("merge", "rejected.parquet"),
        manifest=stage_output("merge", "manifest.parquet"),
        clusters=stage_output("clusters", "clusters.parquet"),
        cluster_stats="results/{run}/cluster_stats.parquet",
        coreset=lambda wildcards: coresets(wildcards.run, "coreset.parquet")[0],
        annotations=annotation_files,
        images=image_folders,
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
        "results/{run}/logs/write_report.log",
    benchmark:
        "results/{run}/benchmarks/write_report.tsv"
    conda:
        "../envs/reporting.yaml"
    envmodules:
        *MODULES.reporting,
    params:
        **settings("write_report"),
        benchmarks=lambda wildcards: benchmark_folders(wildcards.run),
        shared=lambda wildcards: runs.shared(wildcards.run),
    script:
        "../workflow_scripts/write_report.py"


# A static site: its folder can be copied, and index.html opens without a server
rule browser:
    input:
        manifest=stage_output("merge", "manifest.parquet"),
        clusters=stage_output("clusters", "clusters.parquet"),
        centroids=stage_output("clusters", "centroids.parquet"),
        cluster_stats="results/{run}/cluster_stats.parquet",
        coresets=lambda wildcards: [
            f"{runs.folder(wildcards.run, CORESET, method=m)}/coresets/{m}/{f}/coreset.parquet"
            for m, f in browsed_coresets(wildcards.run)
        ],
        annotations=annotation_files,
        images=image_folders,
    output:
        directory("results/{run}/browser"),
    log:
        "results/{run}/logs/browser.log",
    benchmark:
        "results/{run}/benchmarks/browser.tsv"
    conda:
        "../envs/reporting.yaml"
    envmodules:
        *MODULES.reporting,
    threads: job_threads("browser")
    resources:
        **job_needs("browser"),
    params:
        **settings("browser"),
        coresets=lambda wildcards: browsed_coresets(wildcards.run),
    script:
        "../workflow_scripts/browser.py"
