# From clusters to a coreset: transferability, density, shares, budgets, picks.
# Rules that lead to a coreset have priority over training, so that coresets are ready first.


rule transferability:
    input:
        activations=stage_output("merge", "activations.parquet"),
        centroids=stage_output("clusters", "centroids.parquet"),
    output:
        "results/{run}/transferability.parquet",
    log:
        "results/{run}/logs/transferability.log",
    benchmark:
        "results/{run}/benchmarks/transferability.tsv"
    priority: 1
    conda:
        "../envs/selection.yaml"
    envmodules:
        *MODULES.selection,
    threads: job_threads("transferability")
    resources:
        **job_needs("transferability"),
    params:
        **settings("transferability"),
    script:
        "../workflow_scripts/transferability.py"


rule density:
    input:
        activations=stage_output("merge", "activations.parquet"),
        clusters=stage_output("clusters", "clusters.parquet"),
    output:
        "results/{run}/density/group-{cluster_group}.parquet",
    log:
        "results/{run}/logs/density/{cluster_group}.log",
    benchmark:
        "results/{run}/benchmarks/density/{cluster_group}.tsv"
    priority: 1
    conda:
        "../envs/selection.yaml"
    envmodules:
        *MODULES.selection,
    threads: job_threads("density")
    resources:
        **job_needs("density"),
    params:
        **settings("density"),
    script:
        "../workflow_scripts/density.py"


rule shares:
    input:
        centroids=stage_output("clusters", "centroids.parquet"),
        transferability=stage_output("transferability", "transferability.parquet"),
        density=stage_output(
            "density",
            "density/group-{cluster_group}.parquet",
            cluster_group=cluster_groups,
        ),
        premise=premise_check,
    output:
        "results/{run}/shares.parquet",
    log:
        "results/{run}/logs/shares.log",
    benchmark:
        "results/{run}/benchmarks/shares.tsv"
    priority: 1
    conda:
        "../envs/selection.yaml"
    envmodules:
        *MODULES.selection,
    params:
        **settings("shares"),
    script:
        "../workflow_scripts/shares.py"


rule budget:
    input:
        shares=stage_output("shares", "shares.parquet"),
        clusters=if_constrained(stage_output("clusters", "clusters.parquet")),
        manifest=if_constrained(stage_output("merge", "manifest.parquet")),
        ids=id_files("keep", "exclude"),
        earlier=earlier_coreset,
    output:
        "results/{run}/coresets/coincide/{fraction}/budget.parquet",
    log:
        "results/{run}/logs/budget/{fraction}.log",
    benchmark:
        "results/{run}/benchmarks/budget/{fraction}.tsv"
    priority: 1
    conda:
        "../envs/selection.yaml"
    envmodules:
        *MODULES.selection,
    params:
        **settings("budget"),
    script:
        "../workflow_scripts/budget.py"


rule cluster_stats:
    input:
        shares=stage_output("shares", "shares.parquet"),
        budgets=stage_output(
            "budget", "coresets/coincide/{fraction}/budget.parquet", fraction=fractions
        ),
    output:
        "results/{run}/cluster_stats.parquet",
    log:
        "results/{run}/logs/cluster_stats.log",
    benchmark:
        "results/{run}/benchmarks/cluster_stats.tsv"
    conda:
        "../envs/selection.yaml"
    envmodules:
        *MODULES.selection,
    params:
        **settings("cluster_stats"),
        fractions=lambda wildcards: fractions(wildcards.run),
    script:
        "../workflow_scripts/cluster_stats.py"


rule picks:
    input:
        shares=stage_output("shares", "shares.parquet"),
        budget=stage_output("budget", "coresets/coincide/{fraction}/budget.parquet"),
        activations=stage_output("merge", "activations.parquet"),
        clusters=stage_output("clusters", "clusters.parquet"),
        manifest=if_constrained(stage_output("merge", "manifest.parquet")),
        ids=id_files("keep", "exclude"),
        earlier=earlier_coreset,
    output:
        "results/{run}/coresets/coincide/{fraction}/picks/group-{cluster_group}.parquet",
    log:
        "results/{run}/logs/picks/{fraction}-{cluster_group}.log",
    benchmark:
        "results/{run}/benchmarks/picks/{fraction}-{cluster_group}.tsv"
    priority: 1
    conda:
        "../envs/selection.yaml"
    envmodules:
        *MODULES.selection,
    threads: job_threads("picks")
    resources:
        **job_needs("picks"),
    params:
        **settings("picks"),
    script:
        "../workflow_scripts/picks.py"


rule coincide_coreset:
    input:
        shares=stage_output("shares", "shares.parquet"),
        clusters=stage_output("clusters", "clusters.parquet"),
        picks=stage_output(
            "picks",
            "coresets/coincide/{fraction}/picks/group-{cluster_group}.parquet",
            cluster_group=cluster_groups,
        ),
        budget=if_constrained(
            stage_output("budget", "coresets/coincide/{fraction}/budget.parquet")
        ),
        manifest=if_constrained(stage_output("merge", "manifest.parquet")),
        ids=id_files("keep", "exclude"),
        earlier=earlier_coreset,
    output:
        "results/{run}/coresets/coincide/{fraction}/coreset.parquet",
    log:
        "results/{run}/logs/coincide_coreset/{fraction}.log",
    benchmark:
        "results/{run}/benchmarks/coincide_coreset/{fraction}.tsv"
    priority: 1
    conda:
        "../envs/selection.yaml"
    envmodules:
        *MODULES.selection,
    params:
        **settings("coincide_coreset"),
    script:
        "../workflow_scripts/coincide_coreset.py"


rule full_coreset:
    input:
        manifest=stage_output("merge", "manifest.parquet"),
        ids=id_files("exclude"),
    output:
        "results/{run}/coresets/full/1/coreset.parquet",
    log:
        "results/{run}/logs/full_coreset.log",
    benchmark:
        "results/{run}/benchmarks/full_coreset.tsv"
    priority: 1
    conda:
        "../envs/selection.yaml"
    envmodules:
        *MODULES.selection,
    params:
        **settings("full_coreset"),
    script:
        "../workflow_scripts/full_coreset.py"


# A checkpoint: finetuning and evaluation run only if the coreset is another one (`coreset_digest`)
checkpoint coreset_json:
    input:
        coreset=stage_output(CORESET, "coresets/{method}/{fraction}/coreset.parquet"),
        manifest=stage_output("merge", "manifest.parquet"),
        annotations=annotation_files,
    output:
        coreset="results/{run}/coresets/{method}/{fraction}/coreset.json",
        dataset_info="results/{run}/coresets/{method}/{fraction}/dataset_info.json",
    log:
        "results/{run}/logs/coreset_json/{method}-{fraction}.log",
    benchmark:
        "results/{run}/benchmarks/coreset_json/{method}-{fraction}.tsv"
    priority: 1
    conda:
        "../envs/selection.yaml"
    envmodules:
        *MODULES.selection,
    resources:
        **job_needs("coreset_json"),
    params:
        **settings("coreset_json"),
    script:
        "../workflow_scripts/coreset_json.py"


rule coreset_dataset:
    input:
        coreset=stage_output(CORESET, "coresets/{method}/{fraction}/coreset.parquet"),
        manifest=stage_output("merge", "manifest.parquet"),
        annotations=annotation_files,
    output:
        directory("results/{run}/coresets/{method}/{fraction}/coreset_dataset"),
    log:
        "results/{run}/logs/coreset_dataset/{method}-{fraction}.log",
    benchmark:
        "results/{run}/benchmarks/coreset_dataset/{method}-{fraction}.tsv"
    priority: 1
    conda:
        "../envs/selection.yaml"
    envmodules:
        *MODULES.selection,
    params:
        **settings("coreset_dataset"),
    script:
        "../workflow_scripts/coreset_dataset.py"


rule export_coreset:
    input:
        coreset=stage_output(CORESET, "coresets/{method}/{fraction}/coreset.parquet"),
        json=stage_output("coreset_json", "coresets/{method}/{fraction}/coreset.json"),
        dataset_info=stage_output(
            "coreset_json", "coresets/{method}/{fraction}/dataset_info.json"
        ),
        annotations=annotation_files,
        images=image_folders,
    output:
        directory("results/{run}/coresets/{method}/{fraction}/export"),
    log:
        "results/{run}/logs/export_coreset/{method}-{fraction}.log",
    benchmark:
        "results/{run}/benchmarks/export_coreset/{method}-{fraction}.tsv"
    conda:
        "../envs/selection.yaml"
    envmodules:
        *MODULES.selection,
    params:
        **settings("export_coreset"),
    script:
        "../workflow_scripts/export_coreset.py"
