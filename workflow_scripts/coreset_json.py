"""Write the samples of a coreset as LLaVA JSON, ready for a trainer.

Reads coreset.parquet, the manifest and the dataset. Writes the records, in the order of the dataset; and, only if it
differs, their digest, which finetuning depends on.
"""

from coincide.workflow.job import start

config = start(snakemake)

import pandas as pd

from coincide.base.tables import coreset_positions, write_records
from coincide.dataset.formats import coreset_records, open_dataset
from coincide.workflow.content import write_digest

positions = coreset_positions(
    pd.read_parquet(snakemake.input.coreset, columns=["sample_id"]),
    pd.read_parquet(snakemake.input.manifest, columns=["sample_id", "position"]),
)
write_records(coreset_records(open_dataset(config.dataset.annotations), positions), snakemake.output[0])
write_digest(snakemake.output[0])
