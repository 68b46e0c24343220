"""Cluster the activations by spherical k-means, or assign them to the centroids of a finished run.

Reads all activations, or also these centroids. Writes the cluster of each sample with its similarity to the centroid,
and the centroids.
"""

from coincide.workflow.job import start

config = start(snakemake)

from coincide.base.activation_store import Activations
from coincide.base.centroids import read_centroids, write_centroids
from coincide.base.tables import write_table
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
write_table(clusters_table(activations.sample_ids, clustering), snakemake.output.clusters)
write_centroids(clustering.centroids, clustering.labels, snakemake.output.centroids)
