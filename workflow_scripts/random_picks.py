"""Draw the same fraction of the samples at random."""

from coincide.jobs import start

start(snakemake.log[0], snakemake.threads)

import pandas as pd

from coincide.baselines import random_picks
from coincide.tables import coreset_table, write_table

clusters = pd.read_parquet(snakemake.input.clusters)
indices, scores = random_picks(len(clusters), float(snakemake.wildcards.fraction), seed=snakemake.params.seed)
write_table(coreset_table(clusters, indices, scores), snakemake.output[0])
