# Clusters, their transferability and density, budgets, picks, and the coresets.
# All that leads to a coreset goes before training: who waits for the coreset has it first.


rule clusters:
    input:
        activations=made_by("merge", "activations.parquet"),
    output:
        clusters="results/{run}/clusters.parquet",
        centroids="results/{run}/centroids.parquet",
    log:
        "results/{run}/logs/clusters.log",
    benchmark:
        "results/{run}/benchmarks/clusters.tsv"
    priority: 1
    conda:
        "../envs/select.yaml"
    envmodules:
        *MODULES.select,
    threads: cores_to_cluster
    params:
        **settings("clusters"),
    script:
        "../workflow_scripts/clusters.py"


rule transferability:
    input:
        activations=made_by("merge", "activations.parquet"),
        centroids=made_by("clusters", "centroids.parquet"),
    output:
        "results/{run}/transferability.parquet",
    log:
        "results/{run}/logs/transferability.log",
    benchmark:
        "results/{run}/benchmarks/transferability.tsv"
    priority: 1
    conda:
        "../envs/select.yaml"
    envmodules:
        *MODULES.select,
    threads: share_of_cores
    params:
        **settings("transferability"),
    script:
        "../workflow_scripts/transferability.py"


rule density:
    input:
        activations=made_by("merge", "activations.parquet"),
        clusters=made_by("clusters", "clusters.parquet"),
    output:
        "results/{run}/density/group-{cluster_group}.parquet",
    log:
        "results/{run}/logs/density/{cluster_group}.log",
    benchmark:
        "results/{run}/benchmarks/density/{cluster_group}.tsv"
    priority: 1
    conda:
        "../envs/select.yaml"
    envmodules:
        *MODULES.select,
    threads: share_of_cores
    params:
        **settings("density"),
    script:
        "../workflow_scripts/density.py"


rule budget:
    input:
        centroids=made_by("clusters", "centroids.parquet"),
        transferability=made_by("transferability", "transferability.parquet"),
        density=made_by(
            "density",
            "density/group-{cluster_group}.parquet",
            cluster_group=cluster_groups,
        ),
    output:
        "results/{run}/coresets/coincide/{fraction}/budget.parquet",
    log:
        "results/{run}/logs/budget/{fraction}.log",
    benchmark:
        "results/{run}/benchmarks/budget/{fraction}.tsv"
    priority: 1
    conda:
        "../envs/select.yaml"
    envmodules:
        *MODULES.select,
    params:
        **settings("budget"),
    script:
        "../workflow_scripts/budget.py"


rule picks:
    input:
        budget=made_by("budget", "coresets/coincide/{fraction}/budget.parquet"),
        activations=made_by("merge", "activations.parquet"),
        clusters=made_by("clusters", "clusters.parquet"),
    output:
        "results/{run}/coresets/coincide/{fraction}/picks/group-{cluster_group}.parquet",
    log:
        "results/{run}/logs/picks/{fraction}-{cluster_group}.log",
    benchmark:
        "results/{run}/benchmarks/picks/{fraction}-{cluster_group}.tsv"
    priority: 1
    conda:
        "../envs/select.yaml"
    envmodules:
        *MODULES.select,
    threads: share_of_cores
    params:
        **settings("picks"),
    script:
        "../workflow_scripts/picks.py"


rule ranked_picks:
    input:
        budget=made_by("budget", "coresets/coincide/{fraction}/budget.parquet"),
        clusters=made_by("clusters", "clusters.parquet"),
        picks=made_by(
            "picks",
            "coresets/coincide/{fraction}/picks/group-{cluster_group}.parquet",
            cluster_group=cluster_groups,
        ),
    output:
        "results/{run}/coresets/coincide/{fraction}/coreset.parquet",
    log:
        "results/{run}/logs/ranked_picks/{fraction}.log",
    benchmark:
        "results/{run}/benchmarks/ranked_picks/{fraction}.tsv"
    priority: 1
    conda:
        "../envs/select.yaml"
    envmodules:
        *MODULES.select,
    script:
        "../workflow_scripts/ranked_picks.py"


rule clip_scores:
    input:
        shards=made_by("shards", "shards"),
        images=given_once("dataset.images"),
        model=model_files("clip_model"),
    output:
        "results/{run}/clip_scores/shard-{shard}.parquet",
    log:
        "results/{run}/logs/clip_scores/{shard}.log",
    benchmark:
        "results/{run}/benchmarks/clip_scores/{shard}.tsv"
    priority: 1
    conda:
        "../envs/extract.yaml"
    envmodules:
        *MODULES.extract,
    threads: share_of_cores
    params:
        **settings("clip_scores"),
    script:
        "../workflow_scripts/clip_scores.py"


rule difficulty:
    input:
        manifest=made_by("merge", "manifest.parquet"),
        records=whole_dataset("coreset.json"),
        clip_scores=made_by(
            "clip_scores", "clip_scores/shard-{shard}.parquet", shard=shards
        ),
        images=given_once("dataset.images"),
        model=model_files("target_model"),
    output:
        "results/{run}/difficulty.parquet",
    log:
        "results/{run}/logs/difficulty.log",
    benchmark:
        "results/{run}/benchmarks/difficulty.tsv"
    priority: 1
    conda:
        "../envs/finetune.yaml"
    envmodules:
        *MODULES.finetune,
    threads: share_of_cores
    params:
        **settings("difficulty"),
        checkpoints="results/{run}/checkpoints/difficulty",
    script:
        "../workflow_scripts/difficulty.py"


rule method_picks:
    input:
        clusters=made_by("clusters", "clusters.parquet"),
        activations=made_by("merge", "activations.parquet"),
        scores=needed("scores", made_by("merge", "scores")),
        clip_scores=needed(
            "clip_scores",
            made_by("clip_scores", "clip_scores/shard-{shard}.parquet", shard=shards),
        ),
        difficulty=needed("difficulty", made_by("difficulty", "difficulty.parquet")),
    output:
        "results/{run}/coresets/{method}/{fraction}/coreset.parquet",
    log:
        "results/{run}/logs/method_picks/{method}-{fraction}.log",
    benchmark:
        "results/{run}/benchmarks/method_picks/{method}-{fraction}.tsv"
    wildcard_constraints:
        method="|".join(methods.names()),
    priority: 1
    conda:
        "../envs/select.yaml"
    envmodules:
        *MODULES.select,
    threads: share_of_cores
    params:
        **settings("method_picks"),
        settings=lambda wildcards: runs.method_settings(wildcards.run, wildcards.method),
    script:
        "../workflow_scripts/method_picks.py"


rule full:
    input:
        manifest=made_by("merge", "manifest.parquet"),
    output:
        "results/{run}/coresets/full/1/coreset.parquet",
    log:
        "results/{run}/logs/full.log",
    benchmark:
        "results/{run}/benchmarks/full.tsv"
    priority: 1
    conda:
        "../envs/select.yaml"
    envmodules:
        *MODULES.select,
    script:
        "../workflow_scripts/full.py"


rule coreset:
    input:
        coreset=made_by(PICKS_OF, "coresets/{method}/{fraction}/coreset.parquet"),
        manifest=made_by("merge", "manifest.parquet"),
        annotations=given("dataset.annotations"),
    output:
        "results/{run}/coresets/{method}/{fraction}/coreset.json",
    log:
        "results/{run}/logs/coreset/{method}-{fraction}.log",
    benchmark:
        "results/{run}/benchmarks/coreset/{method}-{fraction}.tsv"
    priority: 1
    conda:
        "../envs/select.yaml"
    envmodules:
        *MODULES.select,
    script:
        "../workflow_scripts/coreset.py"


rule coreset_dataset:
    input:
        coreset=made_by(PICKS_OF, "coresets/{method}/{fraction}/coreset.parquet"),
        manifest=made_by("merge", "manifest.parquet"),
        annotations=given("dataset.annotations"),
    output:
        directory("results/{run}/coresets/{method}/{fraction}/dataset"),
    log:
        "results/{run}/logs/coreset_dataset/{method}-{fraction}.log",
    benchmark:
        "results/{run}/benchmarks/coreset_dataset/{method}-{fraction}.tsv"
    priority: 1
    conda:
        "../envs/select.yaml"
    envmodules:
        *MODULES.select,
    script:
        "../workflow_scripts/coreset_dataset.py"


rule cluster_stats:
    input:
        budgets=made_by(
            "budget", "coresets/coincide/{fraction}/budget.parquet", fraction=fractions
        ),
    output:
        "results/{run}/cluster_stats.parquet",
    log:
        "results/{run}/logs/cluster_stats.log",
    benchmark:
        "results/{run}/benchmarks/cluster_stats.tsv"
    conda:
        "../envs/select.yaml"
    envmodules:
        *MODULES.select,
    params:
        fractions=lambda wildcards: fractions(wildcards.run),
    script:
        "../workflow_scripts/cluster_stats.py"


rule select:
    input:
        [coresets(run, "coreset.json") for run in runs],
        [coresets_in_own_format(run) for run in runs],
        expand("results/{run}/cluster_stats.parquet", run=runs),
