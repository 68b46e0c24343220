"""Estimate device-hours and disk space of extraction, finetuning and evaluation.

Reads the manifest, that of the run that the dataset extends, the dataset, the reference model (to measure its speed on
a small sample), the config of the target model and the evaluation questions. Writes estimate.md.
"""

from coincide.workflow.job import start

config = start(snakemake)

import pandas as pd

from coincide.base.files import replacing
from coincide.workflow.estimate import estimate_run

text = estimate_run(
    pd.read_parquet(snakemake.input.manifest),
    config.dataset.annotations,
    config.dataset.image_folders,
    config,
    samples=snakemake.params.samples,
    selections=snakemake.params.selections,
    tasks=snakemake.params.tasks,
)
with replacing(snakemake.output[0]) as path:
    path.write_text(text)
