# Evaluation with lmms-eval, one job per model and task group.


rule holdout_questions:
    input:
        annotations=annotation_files,
        images=image_folders,
        holdout=stage_output("manifest", "samples/holdout.parquet"),
    output:
        directory("results/{run}/holdout"),
    log:
        "results/{run}/logs/holdout_questions.log",
    benchmark:
        "results/{run}/benchmarks/holdout_questions.tsv"
    conda:
        "../envs/evaluation.yaml"
    envmodules:
        *MODULES.evaluation,
    params:
        **settings("holdout_questions"),
    script:
        "../workflow_scripts/holdout_questions.py"


rule leaks:
    input:
        annotations=annotation_files,
        images=image_folders,
        manifest=stage_output("manifest", "samples/manifest.parquet"),
        hashes=stage_output("image_hashes", "image_hashes.parquet"),
        questions=lambda wildcards: question_folders(runs.all_tasks(wildcards.run)),
        holdout=lambda wildcards: (
            stage_output("holdout_questions", "holdout")(wildcards)
            if HOLDOUT in runs.all_tasks(wildcards.run)
            else []
        ),
    output:
        pairs="results/{run}/leaks.parquet",
        tasks="results/{run}/leaks/tasks.parquet",
        examples="results/{run}/leaks/examples.parquet",
        text="results/{run}/leaks/leaks.md",
    log:
        "results/{run}/logs/leaks.log",
    benchmark:
        "results/{run}/benchmarks/leaks.tsv"
    conda:
        "../envs/evaluation.yaml"
    envmodules:
        *MODULES.evaluation,
    threads: job_threads("leaks")
    resources:
        **job_needs("leaks"),
    params:
        **settings("leaks"),
        tasks=lambda wildcards: runs.all_tasks(wildcards.run),
    script:
        "../workflow_scripts/leaks.py"


rule evaluate_model:
    input:
        preflight=checked,
        model=stage_output(
            "finetune_model", "models/{target}/{method}/{fraction}/{seed}"
        ),
        digest=coreset_digest,
        questions=lambda wildcards: question_folders(
            runs.tasks(wildcards.run, wildcards.group)
        ),
        holdout=held_out_questions,
    output:
        results="results/{run}/evaluations/{target}/{method}/{fraction}/{seed}/{group}/results.json",
        samples=directory(
            "results/{run}/evaluations/{target}/{method}/{fraction}/{seed}/{group}/samples"
        ),
    log:
        "results/{run}/logs/evaluate_model/{target}-{method}-{fraction}-{seed}-{group}.log",
    benchmark:
        "results/{run}/benchmarks/evaluate_model/{target}-{method}-{fraction}-{seed}-{group}.tsv"
    conda:
        "../envs/evaluation.yaml"
    envmodules:
        *MODULES.evaluation,
    threads: job_threads("evaluate_model")
    resources:
        **job_needs("evaluate_model"),
    params:
        **settings("evaluate_model"),
        tasks=lambda wildcards: runs.tasks(wildcards.run, wildcards.group),
    script:
        "../workflow_scripts/evaluate_model.py"
