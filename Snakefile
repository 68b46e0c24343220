# COINCIDE: from a visual-instruction-tuning dataset to a coreset, finetuned models and a report.
#
# What a run writes lies under results/<run>/ (docs/artefacts.md lists it); what the default config
# builds for itself (dataset and small models) under resources/. One file of rules/ is one stage.
import sys

from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

from coincide.config import ConfigError, check_config
from coincide.jobs import RunIsLocked, hold_run
from coincide.plan import end_orphans, write_plan

min_version("9.0")


configfile: "config.yaml"


try:
    cfg = check_config(config)
except ConfigError as error:
    raise WorkflowError(str(error))
# Scripts read settings that do not change results (batch size, device) from here, defaults filled
# in; what does change results is a rule's params, so that a new value runs the rule again.
config.clear()
config.update(cfg.model_dump())


wildcard_constraints:
    shard=r"\d{5}",
    fraction=r"[0-9.e-]+",
    method=r"[a-z0-9_]+",
    seed=r"\d+",
    target=r"[A-Za-z0-9._-]+",
    group=r"[A-Za-z0-9._-]+",
    model=r"reference|target",


include: "rules/common.smk"


localrules:
    all,
    select,
    finetune,
    evaluate,


# The few targets that people ask for: snakemake … select | finetune | evaluate | report
rule all:
    default_target: True
    input:
        f"{RUN}/report.html",


include: "rules/dataset.smk"
include: "rules/models.smk"
include: "rules/activations.smk"
include: "rules/selection.smk"
include: "rules/finetune.smk"
include: "rules/evaluate.smk"
include: "rules/report.smk"


onstart:
    # Snakemake's own lock outlives a killed run; this one ends with the process.
    try:
        hold_run(RUN)
    except RunIsLocked as error:
        raise WorkflowError(str(error))
    for name in end_orphans(RUN):
        print(
            f"cancelled the Slurm jobs that a killed run left behind ({name})",
            file=sys.stderr,
        )
    write_plan(
        RUN,
        [
            (
                job.rule.name,
                job.log[0] if job.log else "",
                job.output,
                workflow.dag.needrun(job),
            )
            for job in workflow.dag.jobs
        ],
        next(iter(log), ""),
    )


onsuccess:
    shell("test ! -f {RUN}/summary.md || cat {RUN}/summary.md")
