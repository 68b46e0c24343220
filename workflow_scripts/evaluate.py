"""Run lmms-eval's tasks of one group on a finetuned model."""

from pathlib import Path

from coincide.jobs import start

start(snakemake.log[0], snakemake.threads)

from coincide.evaluate import evaluate

settings = snakemake.config[snakemake.wildcards.run]["evaluation"]
evaluate(
    snakemake.input.model,
    snakemake.params.tasks,
    output=Path(snakemake.output.results).parent,
    python=snakemake.params.python,
    backend=snakemake.params.backend,
    batch_size=settings["batch_size"],
    device=settings["device"],
    dtype=snakemake.params.dtype,
    include_path=snakemake.params.include_path,
    limit=snakemake.params.limit,
)
