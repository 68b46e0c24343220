"""Check every shard of activations and join them into one dataset.

Reads the shards with their rejected samples and sample metrics. Writes activations, sample metrics, manifest and
rejected samples of the whole dataset.
"""

from pathlib import Path

from coincide.workflow.job import start

config = start(snakemake)

import pandas as pd

from coincide.base.tables import write_table
from coincide.dataset.manifest import check_rejected
from coincide.extraction.merge import merge, split_rejected
from coincide.extraction.sample_metrics import merge_sample_metrics

manifest, rejected = split_rejected(
    pd.read_parquet(snakemake.input.manifest),
    pd.read_parquet(snakemake.input.rejected),
    [pd.read_parquet(path) for path in snakemake.input.shards_rejected],
)
rejected_path = Path(snakemake.log[0]).with_suffix(".rejected.parquet")  # outputs of a failed job are removed
write_table(rejected, rejected_path)
check_rejected(rejected, len(manifest) + len(rejected), config.dataset.max_rejected, rejected_path=str(rejected_path))
rejected_path.unlink()
write_table(rejected, snakemake.output.rejected)
merge(manifest, snakemake.input.shards, snakemake.output.activations)
merge_sample_metrics(manifest["sample_id"], snakemake.input.shards_sample_metrics, snakemake.output.sample_metrics)
write_table(manifest, snakemake.output.manifest)
