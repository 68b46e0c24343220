"""Write the default mix: training and set-aside samples, images, evaluation questions."""

from pathlib import Path

from coincide.jobs import start

start(snakemake.log[0], snakemake.threads)

from coincide.mini_mix import write_mini_mix

write_mini_mix(Path(snakemake.output.train).parent, **snakemake.params.size)
