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
