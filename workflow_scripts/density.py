"""Density of every cluster."""

from coincide.jobs import start

start(snakemake.log[0], snakemake.threads)

import pandas as pd

from coincide.density import density
from coincide.storage import Activations
from coincide.tables import column_table, write_table

labels = pd.read_parquet(snakemake.input.clusters)["cluster"].to_numpy()
values = density(Activations(snakemake.input.activations), labels, gamma=snakemake.params.gamma)
write_table(column_table("density", values), snakemake.output[0])
