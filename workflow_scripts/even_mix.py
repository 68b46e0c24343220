"""Write the mix of many small tasks: training samples, images, evaluation questions."""

from pathlib import Path

from coincide.jobs import start

start(snakemake.log[0], snakemake.threads)

from coincide.even_mix import write_even_mix

write_even_mix(Path(snakemake.output.train).parent, **snakemake.params.size)
