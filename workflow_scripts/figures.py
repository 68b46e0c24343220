"""Draw the figures of the report.

Reads the summary, the clusters, the text columns of the activations, the manifest and the coresets. Writes four SVG
files.
"""

from coincide.workflow.job import start

config = start(snakemake)

import pandas as pd

from coincide.base.activation_store import Activations
from coincide.base.centroids import read_centroids
from coincide.reporting import figures

manifest = pd.read_parquet(snakemake.input.manifest)
coresets = [
    (method, fraction, pd.read_parquet(path))
    for (method, fraction), path in zip(snakemake.params.selections, snakemake.input.coresets)
]
blocks = Activations(snakemake.input.activations).text_columns if config.selection.blocks == "text" else None
figures.draw_performance(pd.read_parquet(snakemake.input.summary), snakemake.output.performance)
figures.draw_budgets(pd.read_parquet(snakemake.input.cluster_stats), snakemake.output.budgets)
figures.draw_sources(manifest, coresets, snakemake.output.sources)
figures.draw_similarity(read_centroids(snakemake.input.centroids), snakemake.output.similarity, blocks=blocks)
