"""Divide the rows of the dataset into usable samples, held-out ones and rejected ones.

Reads the dataset and the images. Writes the three tables. If too many samples are rejected, the job fails; Snakemake
then removes its outputs, so the rejected samples are also kept next to the log. It also fails if no coreset can satisfy
the constraints of a run that uses the manifest. The content of the dataset's files is
recorded, so that a later start can tell whether it changed.
"""

from pathlib import Path

from coincide.workflow.job import start

config = start(snakemake)

from coincide.base.tables import write_table
from coincide.dataset.formats import open_dataset
from coincide.dataset.holdout import hold_out
from coincide.dataset.manifest import build_manifest, check_manifest
from coincide.workflow.constraint_checks import check_samples
from coincide.workflow.content import read_content, record_content

content = read_content(config.dataset.annotations, threads=snakemake.threads)
manifest, rejected = build_manifest(
    open_dataset(config.dataset.annotations),
    config.dataset.image_folders,
    config.dataset,
    threads=snakemake.threads,
)
rejected_path = Path(snakemake.log[0]).with_suffix(".rejected.parquet")
write_table(rejected, rejected_path)
check_manifest(
    manifest,
    rejected,
    config.dataset,
    clusters=config.clustering.k or 1,  # an early check only; the manifest does not depend on it
    rejected_path=str(rejected_path),
)
rejected_path.unlink()
manifest, holdout = hold_out(manifest, config.evaluation.holdout, config.dataset.shards)
# an early check, too: before any model runs
check_samples(snakemake.config, snakemake.wildcards.run, manifest, [rejected, holdout])
write_table(rejected, snakemake.output.rejected)
write_table(holdout, snakemake.output.holdout)
write_table(manifest, snakemake.output.manifest)
record_content(content, snakemake.params.content, snakemake.params.content_record)
