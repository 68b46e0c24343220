"""Finetune the target model on a coreset."""

from coincide.jobs import start

start(snakemake.log[0], snakemake.threads)

from coincide.datasets import read_records
from coincide.finetune import TrainingSettings, finetune

names = snakemake.wildcards
finetune(
    snakemake.params.name,
    read_records(snakemake.input.coreset),
    snakemake.input.images,
    settings=TrainingSettings(**snakemake.config[snakemake.wildcards.run]["target_model"]["training"]),
    seed=int(names.seed),
    output=snakemake.output[0],
    checkpoints=f"{snakemake.params.checkpoints}/{names.target}-{names.method}-{names.fraction}-{names.seed}",
    model_options={k: snakemake.params[k] for k in ("revision", "trust_remote_code")},
)
