# Activations of the reference model: one job a shard, then the merge.


rule activations:
    input:
        samples=f"{RUN}/shards/shard-{{shard}}.jsonl",
        images=ancient(cfg.dataset.images),
        model=model_files(cfg.reference_model.name),
    output:
        activations=f"{RUN}/activations/shard-{{shard}}.parquet",
        rejected=f"{RUN}/activations/shard-{{shard}}.rejected.parquet",
    log:
        f"{RUN}/logs/activations/{{shard}}.log",
    benchmark:
        f"{RUN}/benchmarks/activations/{{shard}}.tsv"
    conda:
        "../envs/extract.yaml"
    threads: share_of_cores
    params:
        model=lambda wildcards: cfg.reference_model.name,
        load=load_options(cfg.reference_model),
        layers=cfg.reference_model.layers,
        dtype=cfg.reference_model.dtype,
        max_tokens=cfg.reference_model.max_tokens,
    script:
        "../workflow_scripts/activations.py"


rule merge:
    input:
        manifest=f"{RUN}/samples/manifest.parquet",
        rejected=f"{RUN}/samples/rejected.parquet",
        shards=expand(f"{RUN}/activations/shard-{{shard}}.parquet", shard=SHARDS),
        shards_rejected=expand(
            f"{RUN}/activations/shard-{{shard}}.rejected.parquet", shard=SHARDS
        ),
    output:
        activations=directory(f"{RUN}/activations.parquet"),
        manifest=f"{RUN}/manifest.parquet",
        rejected=f"{RUN}/rejected.parquet",
    log:
        f"{RUN}/logs/merge.log",
    benchmark:
        f"{RUN}/benchmarks/merge.tsv"
    # a shard that it moves aside has to be computed first
    retries: 0
    conda:
        "../envs/extract.yaml"
    params:
        max_rejected=cfg.dataset.max_rejected,
    script:
        "../workflow_scripts/merge.py"
