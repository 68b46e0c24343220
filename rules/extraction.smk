# Activations of the reference model, one job per shard, and their merge; CLIP scores.


rule activations:
    input:
        preflight=checked,
        shards=stage_output("shards", "shards"),
        images=image_folders,
        model=model_files("reference_model"),
        extends=earlier_run("shards", "activations.parquet"),
    output:
        activations="results/{run}/activations/shard-{shard}.parquet",
        rejected="results/{run}/activations/shard-{shard}.rejected.parquet",
        sample_metrics=directory(
            "results/{run}/activations/shard-{shard}.sample_metrics"
        ),
    log:
        "results/{run}/logs/activations/{shard}.log",
    benchmark:
        "results/{run}/benchmarks/activations/{shard}.tsv"
    conda:
        "../envs/extraction.yaml"
    envmodules:
        *MODULES.extraction,
    threads: job_threads("activations")
    resources:
        **job_needs("activations"),
    params:
        **settings("activations"),
    script:
        "../workflow_scripts/activations.py"


rule merge:
    input:
        manifest=screened("manifest.parquet"),
        rejected=screened("rejected.parquet"),
        shards=stage_output(
            "activations", "activations/shard-{shard}.parquet", shard=shards
        ),
        shards_rejected=stage_output(
            "activations", "activations/shard-{shard}.rejected.parquet", shard=shards
        ),
        shards_sample_metrics=stage_output(
            "activations", "activations/shard-{shard}.sample_metrics", shard=shards
        ),
    output:
        activations=directory("results/{run}/activations.parquet"),
        manifest="results/{run}/manifest.parquet",
        sample_metrics=directory("results/{run}/sample_metrics"),
        rejected="results/{run}/rejected.parquet",
    log:
        "results/{run}/logs/merge.log",
    benchmark:
        "results/{run}/benchmarks/merge.tsv"
    # a shard that it moves aside has to be computed first
    retries: 0
    conda:
        "../envs/extraction.yaml"
    envmodules:
        *MODULES.extraction,
    params:
        **settings("merge"),
    script:
        "../workflow_scripts/merge.py"


rule clip_scores:
    input:
        preflight=checked,
        shards=stage_output("shards", "shards"),
        images=image_folders,
        model=model_files("clip_model"),
    output:
        "results/{run}/clip_scores/shard-{shard}.parquet",
    log:
        "results/{run}/logs/clip_scores/{shard}.log",
    benchmark:
        "results/{run}/benchmarks/clip_scores/{shard}.tsv"
    priority: 1
    conda:
        "../envs/extraction.yaml"
    envmodules:
        *MODULES.extraction,
    threads: job_threads("clip_scores")
    resources:
        **job_needs("clip_scores"),
    params:
        **settings("clip_scores"),
    script:
        "../workflow_scripts/clip_scores.py"
