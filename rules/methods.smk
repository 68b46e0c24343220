# Baselines: one coreset per method of coincide/methods.


rule method_coreset:
    input:
        clusters=stage_output("clusters", "clusters.parquet"),
        activations=stage_output("merge", "activations.parquet"),
        sample_metrics=if_needed(
            "sample_metrics", stage_output("merge", "sample_metrics")
        ),
        clip_scores=if_needed(
            "clip_scores",
            stage_output(
                "clip_scores", "clip_scores/shard-{shard}.parquet", shard=shards
            ),
        ),
        difficulty=if_needed(
            "difficulty", stage_output("difficulty", "difficulty.parquet")
        ),
        manifest=if_constrained(stage_output("merge", "manifest.parquet")),
        ids=id_files("keep", "exclude"),
        earlier=earlier_coreset,
    output:
        "results/{run}/coresets/{method}/{fraction}/coreset.parquet",
    log:
        "results/{run}/logs/method_coreset/{method}-{fraction}.log",
    benchmark:
        "results/{run}/benchmarks/method_coreset/{method}-{fraction}.tsv"
    wildcard_constraints:
        method="|".join(methods.names()),
    priority: 1
    conda:
        "../envs/selection.yaml"
    envmodules:
        *MODULES.selection,
    threads: job_threads("method_coreset")
    resources:
        **job_needs("method_coreset"),
    params:
        **settings("method_coreset"),
        method_settings=lambda wildcards: runs.method_settings(
            wildcards.run, wildcards.method
        ),
    script:
        "../workflow_scripts/method_coreset.py"
