"""Everything as a coreset: what relative performance is measured against."""

from coincide.jobs import start

start(snakemake.log[0], snakemake.threads)

import numpy as np
import pandas as pd

from coincide.tables import coreset_table, write_table

clusters = pd.read_parquet(snakemake.input.clusters)
write_table(coreset_table(clusters, np.arange(len(clusters)), np.zeros(len(clusters))), snakemake.output[0])
