# Finetuning of the target model, one job per method, fraction and seed; difficulty, for self_filter.


rule finetune_model:
    input:
        preflight=checked,
        coreset=coreset_of_training,
        digest=coreset_digest,
        images=image_folders,
        model=model_files("target_model"),
    output:
        directory("results/{run}/models/{target}/{method}/{fraction}/{seed}"),
    log:
        "results/{run}/logs/finetune_model/{target}-{method}-{fraction}-{seed}.log",
    benchmark:
        "results/{run}/benchmarks/finetune_model/{target}-{method}-{fraction}-{seed}.tsv"
    conda:
        "../envs/training.yaml"
    envmodules:
        *MODULES.training,
    threads: job_threads("finetune_model")
    resources:
        **job_needs("finetune_model"),
    params:
        **settings("finetune_model"),
        checkpoints="results/{run}/checkpoints",
    script:
        "../workflow_scripts/finetune_model.py"


rule difficulty:
    input:
        preflight=checked,
        manifest=manifest_of_full_data,
        records=full_data,
        digest=full_data_digest,
        clip_scores=stage_output(
            "clip_scores", "clip_scores/shard-{shard}.parquet", shard=shards
        ),
        images=image_folders,
        model=model_files("target_model"),
    output:
        "results/{run}/difficulty.parquet",
    log:
        "results/{run}/logs/difficulty.log",
    benchmark:
        "results/{run}/benchmarks/difficulty.tsv"
    priority: 1
    conda:
        "../envs/training.yaml"
    envmodules:
        *MODULES.training,
    threads: job_threads("difficulty")
    resources:
        **job_needs("difficulty"),
    params:
        **settings("difficulty"),
        manifest=VERSIONS["manifest"],  # the ids of samples
        checkpoints="results/{run}/checkpoints/difficulty",
    script:
        "../workflow_scripts/difficulty.py"
