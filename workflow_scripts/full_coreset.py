"""Coreset of the full data, for the finetuned model that relative performance is measured against.

Samples that `selection.constraints.exclude` names are left out.

Reads the manifest. Writes coreset.parquet.
"""

from coincide.workflow.job import start

config = start(snakemake)

import numpy as np
import pandas as pd

from coincide.base.tables import coreset_table, write_table
from coincide.selection.constraints import read_ids

samples = pd.read_parquet(snakemake.input.manifest, columns=["sample_id"])
samples["cluster"] = pd.array([None] * len(samples), "Int32")  # independent of the clusters
excluded = samples["sample_id"].isin(read_ids(config.selection.constraints.exclude))
write_table(coreset_table(samples, np.flatnonzero(~excluded), np.zeros(len(samples))), snakemake.output[0])
