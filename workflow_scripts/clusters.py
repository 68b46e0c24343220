"""Cluster the activations by spherical k-means."""

from coincide.jobs import start

start(snakemake.log[0], snakemake.threads)

from coincide.clusters import spherical_kmeans
from coincide.storage import Activations
from coincide.tables import clusters_table, write_centroids, write_table

activations = Activations(snakemake.input.activations)
clustering = spherical_kmeans(
    activations,
    snakemake.params.k,
    iterations=snakemake.params.iterations,
    seed=snakemake.params.seed,
    backend=snakemake.params.backend,
    fit_rows=snakemake.params.fit_rows,
)
write_table(clusters_table(activations.sample_ids, clustering), snakemake.output.clusters)
write_centroids(clustering, snakemake.output.centroids)
