"""Difficulty of all samples, by a scoring network trained along with the target model.

Reads the records of the full data and the CLIP embeddings. Writes sample_id and difficulty.
"""

from coincide.workflow.job import start

config = start(snakemake)

import shutil

import pandas as pd

from coincide.base.tables import read_clip_embeddings, write_table
from coincide.dataset.formats import iterate_records
from coincide.training.difficulty import measure_difficulty

# records of a coreset are in the order of the dataset
manifest = pd.read_parquet(snakemake.input.manifest, columns=["sample_id", "position"])
sample_ids = manifest.sort_values("position")["sample_id"].to_numpy()
table = measure_difficulty(
    config.target_model,
    iterate_records(snakemake.input.records),
    sample_ids,
    read_clip_embeddings(snakemake.input.clip_scores, sample_ids),
    config.dataset.image_folders,
    seed=config.selection.seed,
    checkpoints=snakemake.params.checkpoints,
    version=snakemake.params.version,
)
write_table(table, snakemake.output[0])
shutil.rmtree(snakemake.params.checkpoints)
