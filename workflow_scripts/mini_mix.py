"""Write the default mix of the demo.

Reads only the config. Writes train.json, pretrain.json, images, and the questions for evaluation and validation.
"""

from pathlib import Path

from coincide.workflow.job import start

config = start(snakemake)

from coincide.demo.mini_mix import write_mini_mix

write_mini_mix(Path(snakemake.output.train).parent, **config.mini_mix.model_dump())
