"""Convert a model into transformers' format, or assemble one from its parts.

Reads a checkpoint in LLaVA's original format, or a language model, a vision tower and a projector: folders or hub names
of the config. Writes a model folder.
"""

from coincide.workflow.job import start

config = start(snakemake)

from coincide.models.conversion import convert

convert(config.converted_models[snakemake.wildcards.converted], snakemake.output[0])
