# Finetuning of the target model: one job a method, fraction and seed.


rule finetune_model:
    input:
        coreset=made_by("coreset", "coresets/{method}/{fraction}/coreset.json"),
        images=given_once("dataset.images"),
        model=model_files("target_model"),
    output:
        directory("results/{run}/models/{target}/{method}/{fraction}/{seed}"),
    log:
        "results/{run}/logs/finetune/{target}-{method}-{fraction}-{seed}.log",
    benchmark:
        "results/{run}/benchmarks/finetune/{target}-{method}-{fraction}-{seed}.tsv"
    conda:
        "../envs/finetune.yaml"
    envmodules:
        *MODULES.finetune,
    threads: share_of_cores
    params:
        **settings("finetune_model"),
        checkpoints="results/{run}/checkpoints",
    script:
        "../workflow_scripts/finetune.py"


rule finetune:
    input:
        [models(run) for run in runs],
