"""Find near-duplicates within the dataset.

Reads the manifest, the dataset and the hashes of its images. Writes a table of the samples that have a copy of an
image, or repeat another sample.
"""

from coincide.workflow.job import start

config = start(snakemake)

import pandas as pd

from coincide.base.tables import write_table
from coincide.dataset.duplicates import find_duplicates, sample_records
from coincide.dataset.formats import open_dataset

records = sample_records(open_dataset(config.dataset.annotations), pd.read_parquet(snakemake.input.manifest))
write_table(find_duplicates(records, pd.read_parquet(snakemake.input.hashes)), snakemake.output[0])
