"""Draw the figures of the report."""

from coincide.jobs import start

start(snakemake.log[0], snakemake.threads)

import pandas as pd

from coincide import figures
from coincide.storage import Activations
from coincide.tables import read_centroids

manifest = pd.read_parquet(snakemake.input.manifest)
coresets = [
    (method, fraction, pd.read_parquet(path))
    for (method, fraction), path in zip(snakemake.params.selections, snakemake.input.coresets)
]
blocks = Activations(snakemake.input.activations).text_columns if snakemake.params.blocks == "text" else None
figures.performance(pd.read_parquet(snakemake.input.summary), snakemake.output.performance)
figures.budgets(pd.read_parquet(snakemake.input.cluster_stats), snakemake.output.budgets)
figures.sources(manifest, coresets, snakemake.output.sources)
figures.similarity(read_centroids(snakemake.input.centroids), snakemake.output.similarity, blocks=blocks)
