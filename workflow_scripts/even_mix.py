"""Write the demo's second mix, of many small tasks.

Reads only the config. Writes train.json, images, and the questions for evaluation and validation.
"""

from pathlib import Path

from coincide.workflow.job import start

config = start(snakemake)

from coincide.demo.even_mix import write_even_mix

write_even_mix(Path(snakemake.output.train).parent, **config.even_mix.model_dump())
