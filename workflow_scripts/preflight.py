"""Check a run before its first job: models, samples, evaluation tasks, resources and disk.

Reads the dataset and its images, and configs and processors of the models. Writes what it found, with the commit of
each model, as JSON and as text.
"""

from coincide.workflow.job import start

config = start(snakemake)

from coincide.base.files import replacing, write_json
from coincide.workflow.preflight import as_text, preflight, this_machine

report = preflight(
    config,
    machine=this_machine(config.node, local=snakemake.params.local),
    overrides=snakemake.params.overrides,
)
with replacing(snakemake.output.text) as path:
    path.write_text(as_text(report))
write_json(report, snakemake.output.report)
