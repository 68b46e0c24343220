# The check of a run before its first job on a GPU. Jobs wait for it, but it reruns none of them: it is an ancient input.
# It is repeated before a start if its settings have changed (onstart, `coincide.workflow.recheck`), and has no params and
# only ancient inputs, because Snakemake overlooks other changes of the jobs that depend on a job that has to run.


# What the workflow builds itself and the check reads. The rule is one of its own because a changed set of inputs reruns
# a rule: this one, and not the check.
rule preflight_inputs:
    input:
        lambda wildcards: list(map(ancient, built_for_check(wildcards))),
    output:
        touch("results/{run}/preflight.inputs"),


rule preflight:
    input:
        ancient("results/{run}/preflight.inputs"),
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
    threads: job_threads("preflight")
    resources:
        **job_needs("preflight"),
    script:
        "../workflow_scripts/preflight.py"
