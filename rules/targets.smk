# The targets that people ask for: snakemake … check | estimate | select | export | browse | finetune | evaluate | report |
# comparison | pilot | compare | transfer_check. Where a target has the word of a stage, the rule that does the work is a verb
# with its object: finetune is every finetune_model.


localrules:
    all,
    check,
    preflight,
    estimate,
    select,
    export,
    browse,
    finetune,
    evaluate,
    report,
    compare,
    transfer_check,


rule check:
    input:
        sorted({f"{runs.folder(run, PREFLIGHT)}/preflight.json" for run in runs}),


rule estimate:
    input:
        expand("results/{run}/estimate.md", run=runs),


rule select:
    input:
        [coresets(run, "coreset.json") for run in runs],
        [coreset_datasets(run) for run in runs],
        expand("results/{run}/cluster_stats.parquet", run=runs),


rule export:
    input:
        [coresets(run, "export", full=False) for run in runs],


# Not in the default targets: it opens every image that it shows once more, and its folder can have gigabytes
rule browse:
    input:
        expand("results/{run}/browser", run=runs),


rule finetune:
    input:
        [finetuned_models(run) for run in runs],


rule evaluate:
    input:
        [evaluations(run) for run in runs],


rule report:
    input:
        expand("results/{run}/report.html", run=runs),


rule compare:
    input:
        f"{COMPARED}/compare.md",


rule transfer_check:
    input:
        expand("results/{run}/transfer_check/transfer_check.md", run=runs),


# What a run will cost, measured before it starts
rule estimate_cost:
    input:
        preflight=checked,
        manifest=stage_output("manifest", "samples/manifest.parquet"),
        extends=earlier_run("manifest.parquet"),
        annotations=annotation_files,
        images=image_folders,
        model=model_files("reference_model"),
        target=model_files("target_model"),
        questions=lambda wildcards: question_folders(runs.all_tasks(wildcards.run)),
    output:
        "results/{run}/estimate.md",
    log:
        "results/{run}/logs/estimate_cost.log",
    benchmark:
        "results/{run}/benchmarks/estimate_cost.tsv"
    conda:
        "../envs/evaluation.yaml"
    envmodules:
        *MODULES.evaluation,
    threads: job_threads("estimate_cost")
    resources:
        **job_needs("estimate_cost"),
    params:
        **settings("estimate_cost"),
        samples=256,
        selections=lambda wildcards: selections(wildcards.run),
        tasks=lambda wildcards: runs.all_tasks(wildcards.run),
    script:
        "../workflow_scripts/estimate_cost.py"
