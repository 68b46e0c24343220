# What a run will cost, before it is submitted: snakemake … estimate


rule estimated_cost:
    input:
        manifest=made_by("manifest", "samples/manifest.parquet"),
        annotations=given("dataset.annotations"),
        images=given_once("dataset.images"),
        model=model_files("reference_model"),
        target=model_files("target_model"),
        data=lambda wildcards: questions_of(tasks_of(wildcards.run)),
    output:
        "results/{run}/estimate.md",
    log:
        "results/{run}/logs/estimated_cost.log",
    conda:
        "../envs/evaluate.yaml"
    envmodules:
        *MODULES.evaluate,
    threads: share_of_cores
    params:
        samples=256,
        selections=lambda wildcards: selections(wildcards.run),
        tasks=lambda wildcards: tasks_of(wildcards.run),
    script:
        "../workflow_scripts/estimate.py"


rule estimate:
    input:
        expand("results/{run}/estimate.md", run=runs),
