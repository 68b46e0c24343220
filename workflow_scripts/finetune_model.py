"""Finetune the target model on a coreset.

Reads coreset.json and the images. Writes the finetuned model. A model of another label that was trained in the same way
on the same data is linked.
"""

from pathlib import Path

from coincide.workflow.job import start

config = start(snakemake)

from coincide.dataset.formats import iterate_records
from coincide.training.finetune import finetune

names = snakemake.wildcards
of_other_labels = Path(snakemake.output[0]).parents[3].glob(f"*/{names.method}/{names.fraction}/{names.seed}")
finetune(
    config.target_model.checkpoint,
    iterate_records(snakemake.input.coreset),
    config.dataset.image_folders,
    config.target_model.training,
    seed=int(names.seed),
    output=snakemake.output[0],
    checkpoints=f"{snakemake.params.checkpoints}/{names.target}-{names.method}-{names.fraction}-{names.seed}",
    version=snakemake.params.version,
    reusable=sorted(of_other_labels),
)
