"""Finetune the reference model on single clusters, and compare the gain on other clusters with their similarity.

Reads the clusters, their centroids, the records of their samples, and the activations (for the columns of the text
blocks). Writes a table of pairs of clusters, a text and a figure.
"""

from pathlib import Path

from coincide.workflow.job import start

config = start(snakemake)

import pandas as pd

from coincide.base.activation_store import Activations
from coincide.base.centroids import read_centroids
from coincide.base.files import replacing, write_json
from coincide.base.tables import write_table
from coincide.dataset.shards import read_samples
from coincide.reporting import figures
from coincide.study.transfer_check import as_text, check_transfer, relative_gains

clusters = pd.read_parquet(snakemake.input.clusters)
centroids = read_centroids(snakemake.input.centroids)
if config.selection.blocks == "text":
    centroids = centroids[:, Activations(snakemake.input.activations).text_columns]
pairs, result = check_transfer(
    read_samples(sorted(Path(snakemake.input.shards).glob("*.jsonl")), clusters["sample_id"]),
    config.dataset.image_folders,
    clusters,
    centroids,
    config.reference_model.checkpoint,
    config.transfer_check,
)
figures.draw_transfer(relative_gains(pairs), result, snakemake.output.figure)
write_table(pairs, snakemake.output.pairs)
write_json(result, snakemake.output.result)
with replacing(snakemake.output.text) as path:
    path.write_text(as_text(result))
