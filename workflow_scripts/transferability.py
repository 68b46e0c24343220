"""Transferability of each cluster.

Reads the centroids and, for their layout, the metadata of the activations. Writes cluster and transferability.
"""

from coincide.workflow.job import start

config = start(snakemake)

from coincide.base.activation_store import Activations
from coincide.base.centroids import read_centroids
from coincide.base.devices import pick_device
from coincide.base.tables import cluster_table, write_table
from coincide.selection.transferability import transferability

activations = Activations(snakemake.input.activations)
values = transferability(
    read_centroids(snakemake.input.centroids),
    blocks=activations.text_columns if config.selection.blocks == "text" else None,
    exclude_above=config.selection.exclude_above,
    device=pick_device(config.selection.device),
)
write_table(cluster_table("transferability", values), snakemake.output[0])
