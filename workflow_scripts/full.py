"""Everything as a coreset: what relative performance is measured against."""

from coincide.jobs import start

start(snakemake.log[0], snakemake.threads)

import numpy as np
import pandas as pd

from coincide.tables import coreset_table, write_table

samples = pd.read_parquet(snakemake.input.manifest, columns=["sample_id"])
samples["cluster"] = pd.array([None] * len(samples), "Int32")  # the full data waits for no clusters
write_table(coreset_table(samples, np.arange(len(samples)), np.zeros(len(samples))), snakemake.output[0])
