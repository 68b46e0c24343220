"""Write the samples of a coreset in the dataset's format, if that is JSON lines, Parquet or WebDataset.

Reads coreset.parquet, the manifest and the dataset. Writes a folder of files with the names of the dataset's files.
"""

from coincide.workflow.job import start

config = start(snakemake)

import pandas as pd

from coincide.base.tables import coreset_rows
from coincide.dataset.formats import open_dataset, write_subset

rows = coreset_rows(
    pd.read_parquet(snakemake.input.coreset, columns=["sample_id"]),
    pd.read_parquet(snakemake.input.manifest, columns=["sample_id", "position"]),
)
write_subset(open_dataset(config.dataset.annotations), rows["position"].to_numpy(), snakemake.output[0])
