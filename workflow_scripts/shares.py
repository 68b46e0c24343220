"""Share of each cluster in the coreset: softmax of transferability / density.

Reads the centroids (for the sizes), transferability and density. Writes cluster, size, transferability, density, share.
"""

from coincide.workflow.job import start

config = start(snakemake)

import pandas as pd

from coincide.base.tables import write_table
from coincide.selection.budget import spread_text
from coincide.selection.select import shares_table

density = pd.concat([pd.read_parquet(group) for group in snakemake.input.density])["density"].to_numpy()
table = shares_table(
    pd.read_parquet(snakemake.input.centroids, columns=["size"])["size"],
    pd.read_parquet(snakemake.input.transferability)["transferability"].to_numpy(),
    density,
    temperature=config.selection.temperature,
    weigh_density=config.selection.weigh_density,
    budget=config.selection.budget,
)
print(spread_text(table))
write_table(table, snakemake.output[0])
