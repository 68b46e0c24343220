"""Finetune the reference model on single clusters, and compare the gain on other clusters with their similarity.

Reads the clusters, their centroids and the records of their samples. Writes a table of pairs of clusters, a text and a
figure.
"""

from pathlib import Path

from coincide.workflow.job import start

config = start(snakemake)

import pandas as pd

from coincide.base.activation_store import Activations
from coincide.base.centroids import read_centroids
from coincide.base.files import replacing
from coincide.base.tables import write_table
from coincide.dataset.shards import read_samples
from coincide.reporting import figures
from coincide.study.transfer_check import as_text, between, check

clusters = pd.read_parquet(snakemake.input.clusters)
centroids = read_centroids(snakemake.input.centroids)
if config.selection.blocks == "text":
    centroids = centroids[:, Activations(snakemake.input.activations).text_columns]
pairs, found = check(
    read_samples(sorted(Path(snakemake.input.shards).glob("*.jsonl")), clusters["sample_id"]),
    snakemake.input.images,
    clusters,
    centroids,
    config.reference_model.checkpoint,
    config.transfer_check,
)
figures.draw_transfer(between(pairs), found, snakemake.output.figure)
write_table(pairs, snakemake.output.pairs)
with replacing(snakemake.output.text) as path:
    path.write_text(as_text(found))
