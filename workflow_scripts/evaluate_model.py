"""Run the lmms-eval tasks of one group on a finetuned model.

Reads the model. Writes results.json and every answer.
"""

from pathlib import Path

from coincide.workflow.job import start

config = start(snakemake)

from coincide.evaluation.evaluate import evaluate

evaluate(
    snakemake.input.model,
    snakemake.params.tasks,
    config.evaluation,
    output=Path(snakemake.output.results).parent,
)
