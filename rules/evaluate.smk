# Evaluation with lmms-eval: one job a model and task group.


rule evaluate_model:
    input:
        model=made_by("finetune_model", "models/{target}/{method}/{fraction}/{seed}"),
        data=lambda wildcards: questions_of(runs.tasks(wildcards.run, wildcards.group)),
    output:
        results="results/{run}/evaluations/{target}/{method}/{fraction}/{seed}/{group}/results.json",
        samples=directory(
            "results/{run}/evaluations/{target}/{method}/{fraction}/{seed}/{group}/samples"
        ),
    log:
        "results/{run}/logs/evaluate/{target}-{method}-{fraction}-{seed}-{group}.log",
    benchmark:
        "results/{run}/benchmarks/evaluate/{target}-{method}-{fraction}-{seed}-{group}.tsv"
    conda:
        "../envs/evaluate.yaml"
    envmodules:
        *MODULES.evaluate,
    threads: share_of_cores
    params:
        **settings("evaluate_model"),
        tasks=lambda wildcards: runs.tasks(wildcards.run, wildcards.group),
    script:
        "../workflow_scripts/evaluate.py"


rule evaluate:
    input:
        [evaluations(run) for run in runs],
