"""Difficulty of all samples, by a scoring network trained along with the target model."""

import shutil

from coincide.jobs import start

start(snakemake.log[0], snakemake.threads)

import pandas as pd

from coincide.datasets import read_records
from coincide.difficulty import difficulty
from coincide.finetune import TrainingSettings
from coincide.tables import clip_embeddings, write_table

# records of a coreset stand in the order of the dataset
manifest = pd.read_parquet(snakemake.input.manifest, columns=["sample_id", "position"])
sample_ids = manifest.sort_values("position")["sample_id"].to_numpy()
table = difficulty(
    snakemake.params.name,
    read_records(snakemake.input.records),
    sample_ids,
    clip_embeddings(snakemake.input.clip_scores, sample_ids),
    snakemake.input.images,
    settings=TrainingSettings(**snakemake.config[snakemake.wildcards.run]["target_model"]["training"]),
    seed=snakemake.params.seed,
    checkpoints=snakemake.params.checkpoints,
    model_options={k: snakemake.params[k] for k in ("revision", "trust_remote_code")},
)
write_table(table, snakemake.output[0])
shutil.rmtree(snakemake.params.checkpoints)
