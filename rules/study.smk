# Runs and coresets side by side, and the premise of the method.


# All runs of the config side by side
rule comparison:
    input:
        summaries=expand("results/{run}/summary.parquet", run=runs),
    output:
        text=f"{COMPARISON}/comparison.md",
        intervals=f"{COMPARISON}/intervals.csv",
        paired=f"{COMPARISON}/paired.csv",
        ranks=f"{COMPARISON}/ranks.csv",
        costs=f"{COMPARISON}/costs.csv",
        curves=f"{COMPARISON}/curves.svg",
        pareto=f"{COMPARISON}/pareto.svg",
        tasks=f"{COMPARISON}/tasks.svg",
    log:
        f"{COMPARISON}/comparison.log",
    benchmark:
        f"{COMPARISON}/comparison.tsv"
    conda:
        "../envs/reporting.yaml"
    envmodules:
        *MODULES.reporting,
    params:
        version=VERSIONS["comparison"],
        benchmarks={run: shared_benchmark_folders(run) for run in runs},
        variants={
            run: (runs.setting(run, "variant"), runs.setting(run, "replicate"))
            for run in runs
        },
        learned_above=ANY_RUN.evaluation.learned_above,
    script:
        "../workflow_scripts/comparison.py"


# The runs of the target pilot side by side: each method against random choice on a subsample of the dataset
rule pilot:
    input:
        summaries=pilot_summaries,
        results=lambda wildcards: [results for _, _, results in pilot_models()],
        manifest=of_pilot("merge", "manifest.parquet"),
        holdout=of_pilot("manifest", "samples/holdout.parquet"),
    output:
        table=f"results/{PILOT}/pilot.csv",
        text=f"results/{PILOT}/pilot.md",
    log:
        f"results/{PILOT}/pilot.log",
    benchmark:
        f"results/{PILOT}/pilot.tsv"
    conda:
        "../envs/reporting.yaml"
    envmodules:
        *MODULES.reporting,
    params:
        version=VERSIONS["pilot"],
        benchmarks=lambda wildcards: {
            run: shared_benchmark_folders(run) for run in runs.pilot
        },
        folders=[f"results/{run}/benchmarks" for run in runs.pilot],
        models=lambda wildcards: [
            (method, replicate) for method, replicate, _ in pilot_models()
        ],
        model=lambda wildcards: runs.setting(list(runs.pilot)[0], "target_model.name"),
        variants={
            run: (
                runs.setting(run, "variant").removeprefix(f"{PILOT}-"),
                runs.setting(run, "replicate"),
            )
            for run in runs.pilot
        },
    script:
        "../workflow_scripts/pilot.py"


# Two runs, or two coresets: which samples they keep. No scores, so no training: those are compared by comparison.
rule compare_coresets:
    input:
        manifest_a=lambda wildcards: compared_tables("manifest")[0],
        manifest_b=lambda wildcards: compared_tables("manifest")[1],
        clusters_a=lambda wildcards: compared_tables("clusters")[0],
        clusters_b=lambda wildcards: compared_tables("clusters")[1],
        coresets=lambda wildcards: compared_tables("coresets"),
    output:
        text=f"{COMPARED}/compare.md",
        page=f"{COMPARED}/compare.html",
        coresets=f"{COMPARED}/coresets.csv",
        sources=f"{COMPARED}/sources.csv",
        clusters=f"{COMPARED}/clusters.csv",
    log:
        f"{COMPARED}/compare_coresets.log",
    benchmark:
        f"{COMPARED}/compare_coresets.tsv"
    conda:
        "../envs/reporting.yaml"
    envmodules:
        *MODULES.reporting,
    resources:
        **job_needs("compare_coresets"),
    params:
        version=VERSIONS["compare_coresets"],
        names=lambda wildcards: [side.name for side in named_sides()],
        pairs=lambda wildcards: compared_pairs(*named_sides()),
    script:
        "../workflow_scripts/compare_coresets.py"


# The premise of the method, measured: finetune on one cluster, evaluate on the others
rule check_transfer:
    input:
        preflight=checked,
        activations=stage_output("merge", "activations.parquet"),
        clusters=stage_output("clusters", "clusters.parquet"),
        centroids=stage_output("clusters", "centroids.parquet"),
        shards=stage_output("shards", "shards"),
        images=image_folders,
        model=model_files("reference_model"),
    output:
        pairs="results/{run}/transfer_check/pairs.parquet",
        result="results/{run}/transfer_check/transfer_check.json",
        text="results/{run}/transfer_check/transfer_check.md",
        figure="results/{run}/transfer_check/transfer.svg",
    log:
        "results/{run}/logs/check_transfer.log",
    benchmark:
        "results/{run}/benchmarks/check_transfer.tsv"
    conda:
        "../envs/training.yaml"
    envmodules:
        *MODULES.training,
    threads: job_threads("check_transfer")
    resources:
        **job_needs("check_transfer"),
    params:
        **settings("check_transfer"),
    script:
        "../workflow_scripts/check_transfer.py"
