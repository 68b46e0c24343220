"""Drop leaks of the evaluation and near-duplicates, as the config says.

Reads the tables of the samples, and those of the leaks and duplicates that are to be dropped. Writes the tables of the
samples that are left, and of all that are rejected.
"""

from coincide.workflow.job import start

config = start(snakemake)

import pandas as pd

from coincide.base.tables import write_table
from coincide.dataset.screening import screen
from coincide.evaluation.leaks import check_compared

leaks, duplicates = (
    pd.read_parquet(path) if (path := snakemake.input.get(name)) else None for name in ("leaks", "duplicates")
)
if leaks is not None:
    check_compared(pd.read_parquet(snakemake.input.tasks))
manifest, rejected = screen(
    pd.read_parquet(snakemake.input.manifest),
    pd.read_parquet(snakemake.input.rejected),
    config.dataset.shards,
    leaks=leaks,
    duplicates=duplicates,
)
write_table(rejected, snakemake.output.rejected)
write_table(manifest, snakemake.output.manifest)
