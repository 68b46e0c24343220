"""Estimate what extraction, finetuning and evaluation will take, from the manifest and a short measured sample.

Reads the manifest, the dataset and the reference model. Writes a text.
"""

from coincide.workflow.job import start

config = start(snakemake)

import pandas as pd

from coincide.base.files import replacing
from coincide.workflow.estimate import estimate_run

text = estimate_run(
    pd.read_parquet(snakemake.input.manifest),
    snakemake.input.annotations,
    snakemake.input.images,
    config,
    samples=snakemake.params.samples,
    selections=snakemake.params.selections,
    tasks=snakemake.params.tasks,
)
with replacing(snakemake.output[0]) as path:
    path.write_text(text)
