"""Share of each cluster in the coreset: softmax of transferability / density.

Reads the centroids (for the sizes), transferability, density and, for budgets by the premise, the transfer check.
Writes cluster, size, transferability, density, logit, share.
"""

from coincide.workflow.job import start

config = start(snakemake)

import json
from pathlib import Path

import pandas as pd

from coincide.base.tables import write_table
from coincide.selection.budget import premise_weight, spread_text
from coincide.selection.select import shares_table

density = pd.concat([pd.read_parquet(group) for group in snakemake.input.density])["density"].to_numpy()
premise = [json.loads(Path(path).read_text()) for path in snakemake.input.premise]
table = shares_table(
    pd.read_parquet(snakemake.input.centroids, columns=["size"])["size"],
    pd.read_parquet(snakemake.input.transferability)["transferability"].to_numpy(),
    density,
    temperature=config.selection.temperature,
    weigh_density=config.selection.weigh_density,
    budget=config.selection.budget,
    premise_weight=premise_weight(premise[0]) if premise else 1.0,
)
print(spread_text(table))
write_table(table, snakemake.output[0])
