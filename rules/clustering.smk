# Spherical k-means over the activations.
# Rules that lead to a coreset have priority over training, so that coresets are ready first.


rule clusters:
    input:
        activations=stage_output("merge", "activations.parquet"),
        earlier=earlier_clusters("centroids.parquet", "clusters.parquet"),
        manifest=if_assigned(stage_output("merge", "manifest.parquet")),
    output:
        clusters="results/{run}/clusters.parquet",
        centroids="results/{run}/centroids.parquet",
    log:
        "results/{run}/logs/clusters.log",
    benchmark:
        "results/{run}/benchmarks/clusters.tsv"
    priority: 1
    conda:
        "../envs/selection.yaml"
    envmodules:
        *MODULES.selection,
    threads: job_threads("clusters")
    resources:
        **job_needs("clusters"),
    params:
        **settings("clusters"),
    script:
        "../workflow_scripts/clusters.py"
