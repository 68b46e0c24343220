# COINCIDE: from a visual-instruction-tuning dataset to a coreset, finetuned models and a report.
#
# What a run writes lies under results/<run>/ (docs/artefacts.md lists it); what the default config
# builds for itself (dataset and small models) under resources/. One file of rules/ is one stage.
# A config may list several runs; what they have in common is made by the first of them.
import sys

from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

from coincide import methods
from coincide.config import ConfigError, check_runs
from coincide.jobs import RunIsLocked, hold_run, offer_package
from coincide.plan import end_orphans, write_plans
from coincide.runs import PICKS_OF, STAGES, Runs
from coincide.status import outcome

min_version("9.0")


configfile: "config.yaml"


try:
    # jobs read this file again; what the config names was looked at before they were started
    runs = Runs(check_runs(config, files=workflow.is_main_process))
except ConfigError as error:
    raise WorkflowError(str(error))
COMPARISON = f"results/{config['run']}-comparison"
# Scripts read settings that do not change results (batch size, device) from here, by run, defaults
# filled in; what does change results is a rule's params, so that a new value runs the rule again.
config.clear()
config.update({run: runs.configs[run].model_dump() for run in runs})
# Jobs in an environment of their own (conda, modules) find this package, too.
offer_package(workflow.basedir)


wildcard_constraints:
    run=r"[A-Za-z0-9][A-Za-z0-9._-]*",
    shard=r"\d{5}",
    cluster_group=r"\d{3}",
    fraction=r"[0-9.e-]+",
    method=r"[a-z0-9_]+",
    seed=r"\d+",
    target=r"[A-Za-z0-9._-]+",
    group=r"[A-Za-z0-9._-]+",
    model=r"reference|target|clip",


include: "rules/common.smk"


localrules:
    all,
    estimate,
    select,
    finetune,
    evaluate,
    transfer_check,


# The few targets that people ask for: snakemake … estimate | select | finetune | evaluate | report
rule all:
    default_target: True
    input:
        expand("results/{run}/report.html", run=runs),


include: "rules/dataset.smk"
include: "rules/models.smk"
include: "rules/estimate.smk"
include: "rules/activations.smk"
include: "rules/selection.smk"
include: "rules/finetune.smk"
include: "rules/evaluate.smk"
include: "rules/report.smk"


onstart:
    # Snakemake's own lock outlives a killed run; this one ends with the process.
    folders = {f"results/{run}": runs.shared(run) for run in runs}
    try:
        for folder in [*sorted(folders), *["resources"] * builds_resources()]:
            hold_run(folder)
    except RunIsLocked as error:
        raise WorkflowError(str(error))
    for folder in folders:
        for name in end_orphans(folder):
            print(
                f"cancelled the Slurm jobs that a killed run left behind ({name})",
                file=sys.stderr,
            )
    write_plans(folders, *jobs_and_needs(), next(iter(log), ""))


onsuccess:
    shell(
        "cat {} 2>/dev/null || true".format(
            " ".join(
                asked_for(
                    "summary.md",
                    "estimate.md",
                    "comparison.md",
                    "transfer_check.md",
                )
            )
        )
    )


onerror:
    print(*(outcome(f"results/{run}") for run in runs), sep="\n", file=sys.stderr)
