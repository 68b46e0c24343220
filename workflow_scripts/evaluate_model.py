"""Run the lmms-eval tasks of one group on a finetuned model.

Reads the model. Writes results.json and every answer.
"""

from pathlib import Path

from coincide.workflow.job import start

config = start(snakemake)

from coincide.evaluation.evaluate import evaluate

group = next(group for group in config.evaluation.groups if group.name == snakemake.wildcards.group)
evaluation = config.evaluation
if holdout := snakemake.input.get("holdout"):
    evaluation = evaluation.model_copy(update={"include_path": str(holdout)})
evaluate(
    snakemake.input.model,
    snakemake.params.tasks,
    evaluation,
    output=Path(snakemake.output.results).parent,
    trust_remote_code=config.target_model.trust_remote_code,
    may_fail=group.may_fail,
)
