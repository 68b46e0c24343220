"""The picks of all clusters, those of the largest share first."""

from coincide.jobs import start

start(snakemake.log[0], snakemake.threads)

import pandas as pd

from coincide.coreset import rank_picks
from coincide.tables import coreset_table, write_table

clusters, stats = pd.read_parquet(snakemake.input.clusters), pd.read_parquet(snakemake.input.budget)
labels = clusters["cluster"].to_numpy()
picked = pd.concat([pd.read_parquet(path) for path in snakemake.input.picks])["row"].to_numpy()
scores = (stats["transferability"] / stats["density"]).to_numpy()[labels]
write_table(coreset_table(clusters, rank_picks(picked, labels, stats), scores), snakemake.output[0])
