# Summary of the scores, figures, and the report that a person looks at.


rule summary:
    input:
        results=rules.evaluate.input,
        rejected=f"{RUN}/rejected.parquet",
        manifest=f"{RUN}/manifest.parquet",
    output:
        parquet=f"{RUN}/summary.parquet",
        csv=report(
            f"{RUN}/summary.csv",
            caption="../docs/captions/summary.rst",
            category="Scores",
            labels={"table": "scores and relative performance"},
        ),
        text=f"{RUN}/summary.md",
    log:
        f"{RUN}/logs/summary.log",
    benchmark:
        f"{RUN}/benchmarks/summary.tsv"
    conda:
        "../envs/report.yaml"
    params:
        report=f"{RUN}/report.html",
    script:
        "../workflow_scripts/summary.py"


rule figures:
    input:
        summary=f"{RUN}/summary.parquet",
        cluster_stats=f"{RUN}/cluster_stats.parquet",
        centroids=f"{RUN}/centroids.parquet",
        activations=f"{RUN}/activations.parquet",
        manifest=f"{RUN}/manifest.parquet",
        coresets=[f"{RUN}/coresets/{m}/{f}/coreset.parquet" for m, f in selections()],
    output:
        performance=report(
            f"{RUN}/figures/performance.svg",
            caption="../docs/captions/performance.rst",
            category="Scores",
            labels={"figure": "relative performance against fraction"},
        ),
        budgets=report(
            f"{RUN}/figures/budgets.svg",
            caption="../docs/captions/budgets.rst",
            category="Selection",
            labels={"figure": "cluster sizes against budgets"},
        ),
        sources=report(
            f"{RUN}/figures/sources.svg",
            caption="../docs/captions/sources.rst",
            category="Selection",
            labels={"figure": "make-up of the coresets by source"},
        ),
        similarity=report(
            f"{RUN}/figures/similarity.svg",
            caption="../docs/captions/similarity.rst",
            category="Selection",
            labels={"figure": "similarity of the clusters"},
        ),
    log:
        f"{RUN}/logs/figures.log",
    benchmark:
        f"{RUN}/benchmarks/figures.tsv"
    conda:
        "../envs/report.yaml"
    params:
        blocks=cfg.selection.blocks,
        selections=selections(),
    script:
        "../workflow_scripts/figures.py"


rule report:
    input:
        summary=f"{RUN}/summary.parquet",
        rejected=f"{RUN}/rejected.parquet",
        manifest=f"{RUN}/manifest.parquet",
        clusters=f"{RUN}/clusters.parquet",
        cluster_stats=f"{RUN}/cluster_stats.parquet",
        coreset=f"{RUN}/coresets/{selections()[0][0]}/{selections()[0][1]}/coreset.parquet",
        annotations=cfg.dataset.annotations,
        images=ancient(cfg.dataset.images),
        performance=f"{RUN}/figures/performance.svg",
        budgets=f"{RUN}/figures/budgets.svg",
        sources=f"{RUN}/figures/sources.svg",
        similarity=f"{RUN}/figures/similarity.svg",
    output:
        report(
            f"{RUN}/report.html",
            caption="../docs/captions/report.rst",
            category="Report",
            labels={"page": "the whole report"},
        ),
    log:
        f"{RUN}/logs/report.log",
    conda:
        "../envs/report.yaml"
    params:
        benchmarks=f"{RUN}/benchmarks",
    script:
        "../workflow_scripts/report.py"
