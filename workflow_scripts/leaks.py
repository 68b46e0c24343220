"""Find samples that show the evaluation's images, or ask its questions.

Reads the manifest, the dataset and the hashes of its images, and the tasks of the evaluation. Writes the pairs of
documents and samples, what was compared of each task, some pairs to look at, and a text.
"""

from coincide.workflow.job import start

config = start(snakemake)

import logging

import pandas as pd

from coincide.base.files import replacing
from coincide.base.tables import write_table
from coincide.dataset.duplicates import sample_records
from coincide.dataset.formats import open_dataset
from coincide.evaluation.documents import read_documents
from coincide.evaluation.leaks import complete_examples, find_leaks
from coincide.reporting.leaks import leaks_text, unread_tasks

dataset = open_dataset(config.dataset.annotations)
manifest = pd.read_parquet(snakemake.input.manifest)
leaks = find_leaks(
    read_documents(
        snakemake.params.tasks,
        include_path=config.evaluation.include_path,
        python=config.evaluation.python,
        holdout=snakemake.input.get("holdout"),
    ),
    sample_records(dataset, manifest),
    pd.read_parquet(snakemake.input.hashes),
)
for line in unread_tasks(leaks.tasks):
    logging.warning("%s", line)
shown = manifest[manifest["sample_id"].isin(leaks.examples["sample_id"])]
complete_examples(
    leaks, sample_records(dataset, shown), config.dataset.image_folders, follow_links=config.dataset.follow_links
)
write_table(leaks.tasks, snakemake.output.tasks)
write_table(leaks.examples, snakemake.output.examples)
with replacing(snakemake.output.text) as path:
    path.write_text(leaks_text(leaks.pairs, leaks.tasks))
write_table(leaks.pairs, snakemake.output.pairs)
