"""Write the cluster browser of a run: a static site with the samples of every cluster.

Reads the manifest, the clusters and their centroids, the cluster stats, the coresets, the dataset and its images.
Writes the folder browser/.
"""

from coincide.workflow.job import start

config = start(snakemake)

import pandas as pd

from coincide.base.centroids import read_centroids
from coincide.dataset.formats import open_dataset
from coincide.reporting.browser import write_browser

inputs = snakemake.input
coresets = {
    tuple(pair): pd.read_parquet(path, columns=["sample_id", "rank"])
    for pair, path in zip(snakemake.params.coresets, inputs.coresets)
}
write_browser(
    snakemake.output[0],
    run=snakemake.wildcards.run,
    manifest=pd.read_parquet(inputs.manifest, columns=["sample_id", "source", "position"]),
    clusters=pd.read_parquet(inputs.clusters),
    cluster_stats=pd.read_parquet(inputs.cluster_stats),
    centroids=read_centroids(inputs.centroids),
    coresets=coresets,
    dataset=open_dataset(config.dataset.annotations),
    images=config.dataset.image_folders,
    settings=config.browser,
    follow_links=config.dataset.follow_links,
    threads=snakemake.threads,
)
