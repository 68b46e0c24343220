# Summary of the scores, the report, and the cluster browser.


rule summary:
    input:
        results=lambda wildcards: evaluations(wildcards.run),
        rejected=stage_output("merge", "rejected.parquet"),
        manifest=stage_output("merge", "manifest.parquet"),
        holdout=stage_output("manifest", "samples/holdout.parquet"),
        shares=stage_output("shares", "shares.parquet"),
        activations=stage_output("merge", "activations.parquet"),
        clusters=stage_output("clusters", "clusters.parquet"),
        earlier=earlier_results,
        coresets=lambda wildcards: coresets(wildcards.run, "coreset.parquet"),
        leaks=unless_ignored("leaks", "leaks.parquet"),
        leak_tasks=unless_ignored("leaks", "leaks/tasks.parquet"),
        duplicates=unless_ignored("near_duplicates", "duplicates.parquet"),
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


rule write_report:
    input:
        preflight=checked,
        summary="results/{run}/summary.parquet",
        results=lambda wildcards: evaluations(wildcards.run),
        rejected=stage_output("merge", "rejected.parquet"),
        manifest=stage_output("merge", "manifest.parquet"),
        holdout=stage_output("manifest", "samples/holdout.parquet"),
        activations=stage_output("merge", "activations.parquet"),
        clusters=stage_output("clusters", "clusters.parquet"),
        centroids=stage_output("clusters", "centroids.parquet"),
        cluster_stats="results/{run}/cluster_stats.parquet",
        sample_metrics=stage_output("merge", "sample_metrics"),
        earlier=earlier_results,
        coresets=lambda wildcards: coresets(wildcards.run, "coreset.parquet"),
        annotations=annotation_files,
        images=image_folders,
        leaks=unless_ignored("leaks", "leaks.parquet"),
        leak_tasks=unless_ignored("leaks", "leaks/tasks.parquet"),
        leak_examples=unless_ignored("leaks", "leaks/examples.parquet"),
        duplicates=unless_ignored("near_duplicates", "duplicates.parquet"),
        compared=stage_output("manifest", "samples/manifest.parquet"),
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
        all_benchmarks=lambda wildcards: shared_benchmark_folders(wildcards.run),
        shared=lambda wildcards: runs.shared(wildcards.run),
        selections=lambda wildcards: selections(wildcards.run),
        digests=lambda wildcards: coresets(wildcards.run, "coreset.sha256"),
        demo_settings=lambda wildcards: demo_settings(runs.configs[wildcards.run]),
        annotation_digests=lambda wildcards: content_record(wildcards.run),
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
