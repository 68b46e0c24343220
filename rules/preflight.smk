# The check of a run before its first job on a GPU. Jobs wait for it, but it reruns none of them: it is an ancient input.
# It is repeated before a start if its settings have changed (onstart, `coincide.workflow.recheck`). It has neither params
# nor inputs, because Snakemake overlooks other changes of all jobs below a job that has to run. What the workflow builds
# itself and is not there yet is not checked.


rule preflight:
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
