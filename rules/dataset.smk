# The manifest of usable samples, what is screened out of it, and the shards.


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


rule image_hashes:
    input:
        annotations=annotation_files,
        manifest=stage_output("manifest", "samples/manifest.parquet"),
        images=image_folders,
    output:
        "results/{run}/image_hashes.parquet",
    log:
        "results/{run}/logs/image_hashes.log",
    benchmark:
        "results/{run}/benchmarks/image_hashes.tsv"
    conda:
        "../envs/dataset.yaml"
    envmodules:
        *MODULES.dataset,
    threads: job_threads("image_hashes")
    resources:
        **job_needs("image_hashes"),
    params:
        **settings("image_hashes"),
    script:
        "../workflow_scripts/image_hashes.py"


rule duplicates:
    input:
        annotations=annotation_files,
        manifest=stage_output("manifest", "samples/manifest.parquet"),
        hashes=stage_output("image_hashes", "image_hashes.parquet"),
    output:
        "results/{run}/duplicates.parquet",
    log:
        "results/{run}/logs/duplicates.log",
    benchmark:
        "results/{run}/benchmarks/duplicates.tsv"
    conda:
        "../envs/dataset.yaml"
    envmodules:
        *MODULES.dataset,
    threads: job_threads("duplicates")
    resources:
        **job_needs("duplicates"),
    params:
        **settings("duplicates"),
    script:
        "../workflow_scripts/duplicates.py"


# Only where the config drops samples; otherwise the shards are those of the manifest.
rule screen:
    input:
        manifest=stage_output("manifest", "samples/manifest.parquet"),
        rejected=stage_output("manifest", "samples/rejected.parquet"),
        leaks=if_dropped("leaks", "leaks.parquet"),
        tasks=if_dropped("leaks", "leaks/tasks.parquet"),
        duplicates=if_dropped("near_duplicates", "duplicates.parquet"),
    output:
        manifest="results/{run}/screen/manifest.parquet",
        rejected="results/{run}/screen/rejected.parquet",
    log:
        "results/{run}/logs/screen.log",
    benchmark:
        "results/{run}/benchmarks/screen.tsv"
    conda:
        "../envs/dataset.yaml"
    envmodules:
        *MODULES.dataset,
    params:
        **settings("screen"),
    script:
        "../workflow_scripts/screen.py"


rule shards:
    input:
        annotations=annotation_files,
        manifest=screened("manifest.parquet"),
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
