"""Write the samples of a coreset as JSON with uniform types, ready for a trainer.

Reads coreset.parquet, the manifest and the dataset. Writes the records, in the order of the dataset; the entry of the
coreset for LLaMA-Factory, dataset_info.json; and, only if it differs, the digest of the records, which finetuning
depends on.
"""

from coincide.workflow.job import start

config = start(snakemake)

import pandas as pd

from coincide.base.files import write_json
from coincide.base.tables import coreset_rows
from coincide.dataset.formats import open_dataset
from coincide.dataset.uniform_records import dataset_info, write_uniform_records
from coincide.workflow.content import write_digest

rows = coreset_rows(
    pd.read_parquet(snakemake.input.coreset, columns=["sample_id"]),
    pd.read_parquet(snakemake.input.manifest, columns=["sample_id", "position"]),
)
structure = write_uniform_records(
    open_dataset(config.dataset.annotations),
    rows["position"].to_numpy(),
    rows["sample_id"].tolist(),
    snakemake.output.coreset,
)
name = f"{snakemake.wildcards.method}_{snakemake.wildcards.fraction}"
write_json(dataset_info(name, structure), snakemake.output.dataset_info)
write_digest(snakemake.output.coreset)
