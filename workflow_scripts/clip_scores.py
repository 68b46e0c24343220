"""CLIP scores of one shard: how well the text of each sample fits its images.

Reads the shard's records and the images. Writes sample_id, clip_score and embedding.
"""

from pathlib import Path

from coincide.workflow.job import start

config = start(snakemake)

from coincide.base.tables import write_table
from coincide.dataset.shards import read_shard
from coincide.extraction.clip import score_shard

samples = read_shard(Path(snakemake.input.shards) / f"shard-{snakemake.wildcards.shard}.jsonl")
write_table(score_shard(samples, config.dataset.image_folders, config.clip_model), snakemake.output[0])
