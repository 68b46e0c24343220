# Clusters, their transferability and density, budgets, picks, and the coresets.


rule clusters:
    input:
        activations=f"{RUN}/activations.parquet",
    output:
        clusters=f"{RUN}/clusters.parquet",
        centroids=f"{RUN}/centroids.parquet",
    log:
        f"{RUN}/logs/clusters.log",
    benchmark:
        f"{RUN}/benchmarks/clusters.tsv"
    conda:
        "../envs/select.yaml"
    threads: 64
    params:
        k=cfg.clustering.k,
        iterations=cfg.clustering.iterations,
        seed=cfg.clustering.seed,
        backend=cfg.clustering.backend,
        fit_rows=cfg.clustering.fit_rows,
    script:
        "../workflow_scripts/clusters.py"


rule transferability:
    input:
        activations=f"{RUN}/activations.parquet",
        centroids=f"{RUN}/centroids.parquet",
    output:
        f"{RUN}/transferability.parquet",
    log:
        f"{RUN}/logs/transferability.log",
    benchmark:
        f"{RUN}/benchmarks/transferability.tsv"
    conda:
        "../envs/select.yaml"
    threads: share_of_cores
    params:
        blocks=cfg.selection.blocks,
        exclude_above=cfg.selection.exclude_above,
    script:
        "../workflow_scripts/transferability.py"


rule density:
    input:
        activations=f"{RUN}/activations.parquet",
        clusters=f"{RUN}/clusters.parquet",
    output:
        f"{RUN}/density/group-{{cluster_group}}.parquet",
    log:
        f"{RUN}/logs/density/{{cluster_group}}.log",
    benchmark:
        f"{RUN}/benchmarks/density/{{cluster_group}}.tsv"
    conda:
        "../envs/select.yaml"
    threads: share_of_cores
    params:
        gamma=cfg.selection.gamma,
        cluster_groups=cfg.selection.cluster_groups,
    script:
        "../workflow_scripts/density.py"


rule budget:
    input:
        centroids=f"{RUN}/centroids.parquet",
        transferability=f"{RUN}/transferability.parquet",
        density=expand(
            f"{RUN}/density/group-{{cluster_group}}.parquet",
            cluster_group=CLUSTER_GROUPS,
        ),
    output:
        f"{RUN}/coresets/coincide/{{fraction}}/budget.parquet",
    log:
        f"{RUN}/logs/budget/{{fraction}}.log",
    benchmark:
        f"{RUN}/benchmarks/budget/{{fraction}}.tsv"
    conda:
        "../envs/select.yaml"
    params:
        temperature=cfg.selection.temperature,
    script:
        "../workflow_scripts/budget.py"


rule picks:
    input:
        budget=f"{RUN}/coresets/coincide/{{fraction}}/budget.parquet",
        activations=f"{RUN}/activations.parquet",
        clusters=f"{RUN}/clusters.parquet",
    output:
        f"{RUN}/coresets/coincide/{{fraction}}/picks/group-{{cluster_group}}.parquet",
    log:
        f"{RUN}/logs/picks/{{fraction}}-{{cluster_group}}.log",
    benchmark:
        f"{RUN}/benchmarks/picks/{{fraction}}-{{cluster_group}}.tsv"
    conda:
        "../envs/select.yaml"
    threads: share_of_cores
    params:
        gamma=cfg.selection.gamma,
        cluster_groups=cfg.selection.cluster_groups,
    script:
        "../workflow_scripts/picks.py"


rule ranked_picks:
    input:
        budget=f"{RUN}/coresets/coincide/{{fraction}}/budget.parquet",
        clusters=f"{RUN}/clusters.parquet",
        picks=expand(
            f"{RUN}/coresets/coincide/{{{{fraction}}}}/picks/group-{{cluster_group}}.parquet",
            cluster_group=CLUSTER_GROUPS,
        ),
    output:
        f"{RUN}/coresets/coincide/{{fraction}}/coreset.parquet",
    log:
        f"{RUN}/logs/ranked_picks/{{fraction}}.log",
    benchmark:
        f"{RUN}/benchmarks/ranked_picks/{{fraction}}.tsv"
    conda:
        "../envs/select.yaml"
    script:
        "../workflow_scripts/ranked_picks.py"


rule random_picks:
    input:
        clusters=f"{RUN}/clusters.parquet",
    output:
        f"{RUN}/coresets/random/{{fraction}}/coreset.parquet",
    log:
        f"{RUN}/logs/random/{{fraction}}.log",
    benchmark:
        f"{RUN}/benchmarks/random/{{fraction}}.tsv"
    conda:
        "../envs/select.yaml"
    params:
        seed=cfg.selection.seed,
    script:
        "../workflow_scripts/random_picks.py"


rule full:
    input:
        clusters=f"{RUN}/clusters.parquet",
    output:
        f"{RUN}/coresets/full/1/coreset.parquet",
    log:
        f"{RUN}/logs/full.log",
    benchmark:
        f"{RUN}/benchmarks/full.tsv"
    conda:
        "../envs/select.yaml"
    script:
        "../workflow_scripts/full.py"


rule coreset:
    input:
        coreset=f"{RUN}/coresets/{{method}}/{{fraction}}/coreset.parquet",
        manifest=f"{RUN}/manifest.parquet",
        annotations=cfg.dataset.annotations,
    output:
        f"{RUN}/coresets/{{method}}/{{fraction}}/coreset.json",
    log:
        f"{RUN}/logs/coreset/{{method}}-{{fraction}}.log",
    benchmark:
        f"{RUN}/benchmarks/coreset/{{method}}-{{fraction}}.tsv"
    conda:
        "../envs/select.yaml"
    script:
        "../workflow_scripts/coreset.py"


rule cluster_stats:
    input:
        budgets=expand(
            f"{RUN}/coresets/coincide/{{fraction}}/budget.parquet", fraction=FRACTIONS
        ),
    output:
        f"{RUN}/cluster_stats.parquet",
    log:
        f"{RUN}/logs/cluster_stats.log",
    benchmark:
        f"{RUN}/benchmarks/cluster_stats.tsv"
    conda:
        "../envs/select.yaml"
    params:
        fractions=FRACTIONS,
    script:
        "../workflow_scripts/cluster_stats.py"


rule select:
    input:
        [f"{RUN}/coresets/{m}/{f}/coreset.json" for m, f in selections() if m != "full"],
        f"{RUN}/cluster_stats.parquet",
