# The manifest of usable samples, and the shards.


rule manifest:
    input:
        annotations=changed_annotation_files,
        built=built_dataset,
        images=image_folders,
    output:
        manifest="results/{run}/samples/manifest.parquet",
        rejected="results/{run}/samples/rejected.parquet",
        holdout="results/{run}/samples/holdout.parquet",
    log:
        "results/{run}/logs/manifest.log",
    benchmark:
        "results/{run}/benchmarks/manifest.tsv"
    conda:
        "../envs/dataset.yaml"
    envmodules:
        *MODULES.dataset,
    threads: job_threads("manifest")
    resources:
        **job_needs("manifest"),
    params:
        **settings("manifest"),
        content=lambda wildcards: compared_content(wildcards.run).version,
        content_record=lambda wildcards: content_record(wildcards.run),
    script:
        "../workflow_scripts/manifest.py"


rule shards:
    input:
        annotations=annotation_files,
        manifest=stage_output("manifest", "samples/manifest.parquet"),
    output:
        directory("results/{run}/shards"),
    log:
        "results/{run}/logs/shards.log",
    benchmark:
        "results/{run}/benchmarks/shards.tsv"
    conda:
        "../envs/dataset.yaml"
    envmodules:
        *MODULES.dataset,
    params:
        **settings("shards"),
    script:
        "../workflow_scripts/shards.py"
