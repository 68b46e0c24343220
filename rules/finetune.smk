# Finetuning of the target model: one job a method, fraction and seed.


rule finetune_model:
    input:
        coreset=f"{RUN}/coresets/{{method}}/{{fraction}}/coreset.json",
        images=ancient(cfg.dataset.images),
        model=model_files(cfg.target_model.name),
    output:
        directory(f"{RUN}/models/{{target}}/{{method}}/{{fraction}}/{{seed}}"),
    log:
        f"{RUN}/logs/finetune/{{target}}-{{method}}-{{fraction}}-{{seed}}.log",
    benchmark:
        f"{RUN}/benchmarks/finetune/{{target}}-{{method}}-{{fraction}}-{{seed}}.tsv"
    conda:
        "../envs/finetune.yaml"
    threads: share_of_cores
    params:
        model=lambda wildcards: cfg.target_model.name,
        load=load_options(cfg.target_model),
        training=cfg.target_model.training.model_dump(
            exclude={"device", "save_every", "loader_workers", "processes", "nodes"}
        ),
        checkpoints=CHECKPOINTS,
    script:
        "../workflow_scripts/finetune.py"


rule finetune:
    input:
        finetuned(f"{RUN}/models/{{target}}/{{method}}/{{fraction}}/{{seed}}"),
