# COINCIDE: from a visual-instruction-tuning dataset to a coreset, finetuned models and a report.
#
# Results of a run are under results/<run>/ (docs/artefacts.md lists them); the dataset and the small models that the
# default config builds for itself are under resources/. Each file of rules/ is one room of the library, and a rule,
# its script and its artefact carry the same word. A config may list several runs: what they have in common is
# computed once, by the first of them.
import re
import sys
from functools import cache, partial

from snakemake.exceptions import WorkflowError
from snakemake.common.configfile import load_configfile
from snakemake.utils import min_version, update_config

from coincide import methods
from coincide.base.gpus import machine_gpus
from coincide.base.errors import UserError
from coincide.base.sections import HOLDOUT
from coincide.dataset.formats import expand_annotations, is_json
from coincide.reporting.growth import growth_lines, growth_warnings, read_run_growth
from coincide.workflow.compared_coresets import (
    compared_pairs,
    compared_sides,
    comparison_folder,
)
from coincide.workflow.config import (
    EVEN_MIX,
    MINI_MIX,
    MODELS,
    TINY_MODELS,
    check_workflow_folder,
    conversion_of,
    demo_settings,
)
from coincide.workflow.console import (
    Console,
    coreset_lines,
    is_quiet,
    quieten_snakemake,
)
from coincide.workflow.constraint_checks import check_manifests
from coincide.workflow.content import changed_dataset_text, dataset_content, kept_text
from coincide.workflow.job import offer_package
from coincide.workflow.job_resources import RESOURCES, JobResources
from coincide.workflow.lock import hold_run
from coincide.workflow.overlay import check_runs, with_types
from coincide.workflow.pilot import check_pilot, pilot_name, pilot_runs
from coincide.workflow.plan import finish_plans, write_plans
from coincide.workflow.recheck import repeat_checks
from coincide.workflow.reruns import CONTENT_KEYED
from coincide.workflow.slurm import cancel_orphans
from coincide.workflow.stages import (
    CORESET,
    PREFLIGHT,
    VERSIONS,
    Runs,
    section_settings,
)

min_version("9.0")


# The folder of this file, which need not be the working folder: with --directory or as a module it is another one.
FOLDER = workflow.current_basedir.get_path_or_uri(secret_free=True)
# Jobs in another environment (conda, modules) find this package, too.
offer_package(FOLDER)
# By --configfile, --config, or the workflow that includes this one as a module
given = with_types(config, workflow.config_settings.config_args or [])
config = load_configfile(workflow.source_path("config.yaml"))
update_config(config, given)

try:
    check_workflow_folder(FOLDER)
    # Jobs read this file again; the files that the config names were checked before the jobs started.
    configs = check_runs(config, files=workflow.is_main_process, overrides=given)
    # A config that cannot have a pilot is an error only when the target asks for it
    runs = Runs(configs, pilot_runs(config, configs, overrides=given))
except UserError as error:
    raise WorkflowError(str(error))
COMPARISON = f"results/{config['run']}-comparison"
PILOT = pilot_name(config["run"])
raise_pilot_problems = partial(check_pilot, config, configs, overrides=given)
COMPARED = comparison_folder(runs)
# Scripts read their settings from here, by run, with defaults filled in. The settings that change results are also
# params of the rule, so that a new value reruns it.
config = {run: values.model_dump() for run, values in runs.configs.items()}
console = []  # prints the progress, once jobs start
if (
    workflow.is_main_process
    and workflow.modifier.is_main_snakefile()
    and is_quiet(workflow.output_settings)
):
    quieten_snakemake(running=False)


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
include: "rules/targets.smk"


# Snakemake ignores the default target of included files, so this rule is here.
rule all:
    default_target: True
    input:
        expand("results/{run}/report.html", run=runs),
        expand("results/{run}/summary.csv", run=runs),
        rules.select.input,
        rules.finetune.input,


include: "rules/demo.smk"
include: "rules/models.smk"
include: "rules/preflight.smk"
include: "rules/dataset.smk"
include: "rules/extraction.smk"
include: "rules/clustering.smk"
include: "rules/selection.smk"
include: "rules/methods.smk"
include: "rules/training.smk"
include: "rules/evaluation.smk"
include: "rules/reporting.smk"
include: "rules/study.smk"


onstart:
    # Snakemake's own lock outlives a killed run; this one ends with the process.
    folders = {f"results/{run}": runs.shared(run) for run in started_runs()}
    try:
        for folder in [*sorted(folders), *["resources"] * builds_resources()]:
            hold_run(folder)
    except UserError as error:
        raise WorkflowError(str(error))
    for folder in folders:
        for name in cancel_orphans(folder):
            print(
                f"cancelled the Slurm jobs that a killed run left behind ({name})",
                file=sys.stderr,
            )
    try:
        repeat_stale_checks()
        check_constraints()
    except UserError as error:
        raise WorkflowError(str(error))
    write_plans(folders, *planned_jobs(), next(iter(log), ""))
    if is_quiet(workflow.output_settings):
        quieten_snakemake(running=True)
        console.append(Console(folders))
        console[0].begin()
    planned_results.update(
        (job.rule.name, str(job.output[0])) for job in training_jobs()
    )
    for run in started_runs():
        for line in demo_settings(runs.configs[run]):
            print(f"Warning ({run}): {line}", file=sys.stderr)
        if compared_content(run).is_other:
            print(changed_dataset_text(f"results/{run}"), file=sys.stderr)


onsuccess:
    finish_plans(f"results/{run}" for run in started_runs())
    for shown in console:
        shown.end()
    executed = [
        str(job.output[0]) for job in workflow.dag.finished_jobs if job.output
    ]
    if text := kept_text(planned_results, executed):
        print(text)
    for line in requested_coresets():
        print(line)
    for path in requested_texts():
        print(open(path).read())
    for path in browser_pages():
        print(f"the clusters with their samples: {path}")


onerror:
    from coincide.workflow.status import outcome

    for shown in console:
        shown.end()
    print(
        *(outcome(f"results/{run}") for run in started_runs()),
        sep="\n",
        file=sys.stderr,
    )
