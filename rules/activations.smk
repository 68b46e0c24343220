# Activations of the reference model: one job a shard, then the merge.


rule activations:
    input:
        shards=made_by("shards", "shards"),
        images=given_once("dataset.images"),
        model=model_files("reference_model"),
    output:
        activations="results/{run}/activations/shard-{shard}.parquet",
        rejected="results/{run}/activations/shard-{shard}.rejected.parquet",
        scores=directory("results/{run}/activations/shard-{shard}.scores"),
    log:
        "results/{run}/logs/activations/{shard}.log",
    benchmark:
        "results/{run}/benchmarks/activations/{shard}.tsv"
    conda:
        "../envs/extract.yaml"
    envmodules:
        *MODULES.extract,
    threads: share_of_cores
    params:
        **settings("activations"),
    script:
        "../workflow_scripts/activations.py"


rule merge:
    input:
        manifest=made_by("manifest", "samples/manifest.parquet"),
        rejected=made_by("manifest", "samples/rejected.parquet"),
        shards=made_by("activations", "activations/shard-{shard}.parquet", shard=shards),
        shards_rejected=made_by(
            "activations", "activations/shard-{shard}.rejected.parquet", shard=shards
        ),
        shards_scores=made_by(
            "activations", "activations/shard-{shard}.scores", shard=shards
        ),
    output:
        activations=directory("results/{run}/activations.parquet"),
        manifest="results/{run}/manifest.parquet",
        scores=directory("results/{run}/scores"),
        rejected="results/{run}/rejected.parquet",
    log:
        "results/{run}/logs/merge.log",
    benchmark:
        "results/{run}/benchmarks/merge.tsv"
    # a shard that it moves aside has to be computed first
    retries: 0
    conda:
        "../envs/extract.yaml"
    envmodules:
        *MODULES.extract,
    params:
        **settings("merge"),
    script:
        "../workflow_scripts/merge.py"
