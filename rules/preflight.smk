# The check of a run before its first job on a GPU. Its output is an ancient input of the jobs that wait for it: a new
# check alone reruns none of them.


rule preflight:
    input:
        annotations=annotation_files,
        images=image_folders,
        reference=model_files("reference_model"),
        target=model_files("target_model"),
        clip=lambda wildcards: (
            model_files("clip_model")(wildcards) if reads_clip(wildcards.run) else []
        ),
    output:
        report="results/{run}/preflight.json",
        text="results/{run}/preflight.md",
    log:
        "results/{run}/logs/preflight.log",
    benchmark:
        "results/{run}/benchmarks/preflight.tsv"
    priority: 2
    # a set-up that cannot work does not work the second time
    retries: 0
    conda:
        "../envs/evaluation.yaml"
    envmodules:
        *MODULES.evaluation,
    params:
        settings=lambda wildcards: preflight_settings(runs.configs[wildcards.run]),
        overrides=profile_overrides,
        local=lambda wildcards: job_resources().local,
    script:
        "../workflow_scripts/preflight.py"
