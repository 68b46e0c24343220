# Dataset: the mixes that the workflow writes, the manifest of usable samples, and the shards.


rule mini_mix:
    output:
        train=f"{MINI_MIX}/train.json",
        pretrain=f"{MINI_MIX}/pretrain.json",
        images=directory(f"{MINI_MIX}/images"),
        evaluation=directory(f"{MINI_MIX}/evaluation"),
        validation=directory(f"{MINI_MIX}/validation"),
    log:
        "resources/logs/mini_mix.log",
    benchmark:
        "resources/benchmarks/mini_mix.tsv"
    conda:
        "../envs/dataset.yaml"
    envmodules:
        *MODULES.dataset,
    params:
        size=ANY_RUN.mini_mix.model_dump(),
    script:
        "../workflow_scripts/mini_mix.py"


rule even_mix:
    output:
        train=f"{EVEN_MIX}/train.json",
        images=directory(f"{EVEN_MIX}/images"),
        evaluation=directory(f"{EVEN_MIX}/evaluation"),
        validation=directory(f"{EVEN_MIX}/validation"),
    log:
        "resources/logs/even_mix.log",
    benchmark:
        "resources/benchmarks/even_mix.tsv"
    conda:
        "../envs/dataset.yaml"
    envmodules:
        *MODULES.dataset,
    params:
        size=ANY_RUN.even_mix.model_dump(),
    script:
        "../workflow_scripts/even_mix.py"


rule manifest:
    input:
        annotations=given("dataset.annotations"),
        images=given_once("dataset.images"),
    output:
        manifest="results/{run}/samples/manifest.parquet",
        rejected="results/{run}/samples/rejected.parquet",
    log:
        "results/{run}/logs/manifest.log",
    benchmark:
        "results/{run}/benchmarks/manifest.tsv"
    conda:
        "../envs/dataset.yaml"
    envmodules:
        *MODULES.dataset,
    threads: share_of_cores
    params:
        **settings("manifest"),
    script:
        "../workflow_scripts/manifest.py"


rule shards:
    input:
        annotations=given("dataset.annotations"),
        manifest=made_by("manifest", "samples/manifest.parquet"),
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
