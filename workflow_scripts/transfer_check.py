"""Finetune the reference model on single clusters, and set the gain on others against their similarity."""

from pathlib import Path

from coincide.jobs import start

start(snakemake.log[0], snakemake.threads)

import pandas as pd

from coincide import figures
from coincide.files import replacing
from coincide.shards import read_samples
from coincide.storage import Activations
from coincide.tables import read_centroids, write_table
from coincide.transfer_check import as_text, between, check

clusters = pd.read_parquet(snakemake.input.clusters)
centroids = read_centroids(snakemake.input.centroids)
if snakemake.params.blocks == "text":
    centroids = centroids[:, Activations(snakemake.input.activations).text_columns]
pairs, found = check(
    read_samples(sorted(Path(snakemake.input.shards).glob("*.jsonl")), clusters["sample_id"]),
    snakemake.input.images,
    clusters,
    centroids,
    model_name=snakemake.params.name,
    options={"revision": snakemake.params.revision, "trust_remote_code": snakemake.params.trust_remote_code},
    settings=snakemake.params.transfer_check,
)
figures.transfer(between(pairs), found, snakemake.output.figure)
write_table(pairs, snakemake.output.pairs)
with replacing(snakemake.output.text) as path:
    path.write_text(as_text(found))
