"""Cluster the activations by spherical k-means, or assign them to the centroids of a finished run.

Reads all activations, or also these centroids with their clusters and the manifest. Writes the cluster of each sample
with its similarity to the centroid, and the centroids; the log says how well new samples fit the centroids of the
finished run.
"""

from coincide.workflow.job import start

config = start(snakemake)

import pandas as pd

from coincide.base.activation_store import Activations
from coincide.base.centroids import read_centroids, write_centroids
from coincide.base.tables import write_table
from coincide.clustering.fit import centroid_fit
from coincide.clustering.kmeans import assign, clusters_table, recommended_clusters, spherical_kmeans

activations = Activations(snakemake.input.activations)
settings = config.clustering
if snakemake.input.earlier:
    clustering = assign(activations, read_centroids(snakemake.input.earlier[0]))
else:
    clustering = spherical_kmeans(
        activations,
        settings.k or recommended_clusters(len(activations.sample_ids)),
        iterations=settings.iterations,
        seed=settings.seed,
        init=settings.init,
        backend=settings.backend,
        fit_rows=settings.fit_rows,
    )
clusters = clusters_table(activations.sample_ids, clustering)
if snakemake.input.earlier:
    earlier = pd.read_parquet(snakemake.input.earlier[1], columns=["sample_id", "cluster", "similarity"])
    manifest = pd.read_parquet(snakemake.input.manifest, columns=["sample_id", "source"])
    centroid_fit(earlier, clusters, manifest, quantile=settings.poor_fit)
write_table(clusters, snakemake.output.clusters)
write_centroids(clustering.centroids, clustering.labels, snakemake.output.centroids)
