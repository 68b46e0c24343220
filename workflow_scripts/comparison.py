"""Compare the methods over all runs of the config.

Reads the summaries of all runs and the benchmarks of their jobs. Writes CSV tables, figures and the comparison as
Markdown.
"""

from pathlib import Path

from coincide.workflow.job import start

config = start(snakemake)

import pandas as pd

from coincide.base.files import replacing
from coincide.reporting import figures
from coincide.reporting.costs import costs
from coincide.reporting.summary import unlearned_tasks
from coincide.study.comparison import (
    as_text,
    combine_summaries,
    intervals,
    paired_tests,
    ranks,
    task_table,
)

learned_above = snakemake.params.learned_above
summaries = {Path(path).parent.name: pd.read_parquet(path) for path in snakemake.input.summaries}
table = combine_summaries(summaries, snakemake.params.variants, learned_above=learned_above)
unlearned = unlearned_tasks(table, learned_above)
performance, tests, ranking = intervals(table), paired_tests(table), ranks(table)
cost = costs(table, snakemake.params.benchmarks)
tasks = task_table(performance, unlearned)
for name, result in {"intervals": performance, "paired": tests, "ranks": ranking, "costs": cost}.items():
    with replacing(snakemake.output[name]) as path:
        result.to_csv(path, index=False)
figures.draw_tasks(tasks, snakemake.output.tasks)
figures.draw_curves(performance, snakemake.output.curves)
figures.draw_pareto(performance, cost, snakemake.output.pareto)
with replacing(snakemake.output.text) as path:
    path.write_text(as_text(performance, tests, ranking, cost, tasks, unlearned))
