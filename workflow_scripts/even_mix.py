"""Write the mix of many small tasks: training samples, images, evaluation questions."""

from pathlib import Path

from coincide.workflow.job import start

config = start(snakemake)

from coincide.demo.even_mix import write_even_mix

write_even_mix(Path(snakemake.output.train).parent, **config.even_mix.model_dump())
