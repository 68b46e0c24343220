"""Compare the methods over all runs of the config.

Reads the summaries of all runs and the times of their jobs. Writes tables, figures and a text.
"""

from pathlib import Path

from coincide.workflow.job import start

config = start(snakemake)

import pandas as pd

from coincide.base.files import replacing
from coincide.reporting import figures
from coincide.reporting.summary import unlearned
from coincide.study.comparison import as_text, by_task, collect, costs, intervals, paired, ranks

summaries = {Path(path).parent.name: pd.read_parquet(path) for path in snakemake.input.summaries}
table = collect(summaries, snakemake.params.variants, learned_above=snakemake.params.learned_above)
found, tests, ranked = intervals(table), paired(table), ranks(table)
cost = costs(table, snakemake.params.benchmarks)
for name, part in {"intervals": found, "paired": tests, "ranks": ranked, "costs": cost}.items():
    with replacing(snakemake.output[name]) as path:
        part.to_csv(path, index=False)
left_out = unlearned(table, snakemake.params.learned_above)
tasks = by_task(found, left_out)
figures.tasks(tasks, snakemake.output.tasks)
figures.curves(found, snakemake.output.curves)
figures.pareto(found, cost, snakemake.output.pareto)
with replacing(snakemake.output.text) as path:
    path.write_text(as_text(found, tests, ranked, cost, tasks, left_out))
