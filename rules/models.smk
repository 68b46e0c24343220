# Small reference and target models, for runs that name no model of their own.


rule built_model:
    input:
        records=f"{MINI_MIX}/pretrain.json",
        images=f"{MINI_MIX}/images",
    output:
        directory("resources/models/{model}"),
    log:
        "resources/logs/built_model/{model}.log",
    benchmark:
        "resources/benchmarks/built_model/{model}.tsv"
    conda:
        "../envs/finetune.yaml"
    envmodules:
        *MODULES.finetune,
    threads: share_of_cores
    params:
        model=lambda wildcards: built_model_settings(wildcards.model),
        checkpoints="resources/models/.checkpoints",
    script:
        "../workflow_scripts/built_model.py"
