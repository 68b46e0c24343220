# Dataset: the default mix, the manifest of usable samples, and the shards.


rule mini_mix:
    output:
        train=f"{MINI_MIX}/train.json",
        pretrain=f"{MINI_MIX}/pretrain.json",
        images=directory(f"{MINI_MIX}/images"),
        evaluation=directory(f"{MINI_MIX}/evaluation"),
    log:
        f"{RUN}/logs/mini_mix.log",
    benchmark:
        f"{RUN}/benchmarks/mini_mix.tsv"
    conda:
        "../envs/dataset.yaml"
    params:
        size=cfg.mini_mix.model_dump(),
    script:
        "../workflow_scripts/mini_mix.py"


rule manifest:
    input:
        annotations=cfg.dataset.annotations,
        images=ancient(cfg.dataset.images),
    output:
        manifest=f"{RUN}/samples/manifest.parquet",
        rejected=f"{RUN}/samples/rejected.parquet",
    log:
        f"{RUN}/logs/manifest.log",
    benchmark:
        f"{RUN}/benchmarks/manifest.tsv"
    conda:
        "../envs/dataset.yaml"
    threads: share_of_cores
    params:
        shards=cfg.dataset.shards,
        duplicate_ids=cfg.dataset.duplicate_ids,
        decode_images=cfg.dataset.decode_images,
        max_rejected=cfg.dataset.max_rejected,
    script:
        "../workflow_scripts/manifest.py"


rule shards:
    input:
        annotations=cfg.dataset.annotations,
        manifest=f"{RUN}/samples/manifest.parquet",
    output:
        expand(f"{RUN}/shards/shard-{{shard}}.jsonl", shard=SHARDS),
    log:
        f"{RUN}/logs/shards.log",
    benchmark:
        f"{RUN}/benchmarks/shards.tsv"
    conda:
        "../envs/dataset.yaml"
    script:
        "../workflow_scripts/shards.py"
