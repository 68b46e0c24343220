"""Transferability of every cluster."""

from coincide.jobs import start

start(snakemake.log[0], snakemake.threads)

from coincide.devices import pick_device
from coincide.storage import Activations
from coincide.tables import column_table, read_centroids, write_table
from coincide.transferability import transferability

settings = snakemake.config[snakemake.wildcards.run]["selection"]
activations = Activations(snakemake.input.activations)
values = transferability(
    read_centroids(snakemake.input.centroids),
    blocks=activations.text_columns if snakemake.params.blocks == "text" else None,
    exclude_above=snakemake.params.exclude_above,
    device=pick_device(settings["device"]),
)
write_table(column_table("transferability", values), snakemake.output[0])
