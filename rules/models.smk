# Small reference and target models, for runs that name no model of their own.


rule built_model:
    input:
        records=f"{MINI_MIX}/pretrain.json",
        images=f"{MINI_MIX}/images",
    output:
        directory("resources/models/{model}"),
    log:
        f"{RUN}/logs/built_model/{{model}}.log",
    benchmark:
        f"{RUN}/benchmarks/built_model/{{model}}.tsv"
    conda:
        "../envs/finetune.yaml"
    threads: share_of_cores
    params:
        model=lambda wildcards: cfg.built_models[wildcards.model].model_dump(),
        checkpoints="resources/models/.checkpoints",
    script:
        "../workflow_scripts/built_model.py"
