"""Check every shard of activations and join them into one dataset, with its manifest."""

from coincide.jobs import start

start(snakemake.log[0], snakemake.threads)

import pandas as pd

from coincide.manifest import check_rejected
from coincide.merge import merge, split_rejected
from coincide.scores import merge_scores
from coincide.tables import write_table

manifest, rejected = split_rejected(
    pd.read_parquet(snakemake.input.manifest),
    pd.read_parquet(snakemake.input.rejected),
    [pd.read_parquet(path) for path in snakemake.input.shards_rejected],
)
write_table(rejected, snakemake.output.rejected)
check_rejected(rejected, len(manifest) + len(rejected), snakemake.params.max_rejected)
merge(manifest, snakemake.input.shards, snakemake.output.activations)
merge_scores(manifest["sample_id"], snakemake.input.shards_scores, snakemake.output.scores)
write_table(manifest, snakemake.output.manifest)
