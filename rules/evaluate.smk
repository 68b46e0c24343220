# Evaluation with lmms-eval: one job a model and task group.


rule evaluate_model:
    input:
        model=f"{RUN}/models/{{target}}/{{method}}/{{fraction}}/{{seed}}",
        data=f"{MINI_MIX}/evaluation" if uses_mini_mix_tasks() else [],
    output:
        results=f"{RUN}/evaluations/{{target}}/{{method}}/{{fraction}}/{{seed}}/{{group}}/results.json",
        samples=directory(
            f"{RUN}/evaluations/{{target}}/{{method}}/{{fraction}}/{{seed}}/{{group}}/samples"
        ),
    log:
        f"{RUN}/logs/evaluate/{{target}}-{{method}}-{{fraction}}-{{seed}}-{{group}}.log",
    benchmark:
        f"{RUN}/benchmarks/evaluate/{{target}}-{{method}}-{{fraction}}-{{seed}}-{{group}}.tsv"
    conda:
        "../envs/evaluate.yaml"
    threads: share_of_cores
    params:
        tasks=lambda wildcards: TASKS[wildcards.group],
        include_path=cfg.evaluation.include_path,
        backend=cfg.evaluation.backend,
        dtype=cfg.evaluation.dtype,
        limit=cfg.evaluation.limit,
    script:
        "../workflow_scripts/evaluate.py"


rule evaluate:
    input:
        [
            f"{folder}/{group}/results.json"
            for folder in finetuned(
                f"{RUN}/evaluations/{{target}}/{{method}}/{{fraction}}/{{seed}}"
            )
            for group in TASKS
        ],
