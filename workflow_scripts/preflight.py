"""Check a run before its first job: models, samples, evaluation tasks, resources and disk.

Reads the dataset and its images, and configs and processors of the models. Writes what it found, with the commit of
each model, as JSON and as text.
"""

from coincide.workflow.job import start

config = start(snakemake)

from coincide.workflow.preflight import write_preflight

write_preflight(config, snakemake.output.report, **snakemake.config[".jobs"])
