"""Compare every method with random choice on a subsample of the dataset.

Reads the answers and the summaries of the pilot's runs, and the benchmarks of their jobs. Writes the margins over
random choice as CSV, and the answer as Markdown.
"""

from pathlib import Path

from coincide.workflow.job import start

config = start(snakemake)

import pandas as pd

from coincide.base.files import replacing
from coincide.evaluation.results import read_answers
from coincide.reporting.costs import costs, stage_times
from coincide.study.pilot import as_text, margins, pilot_scores

summaries = {Path(path).parent.name: pd.read_parquet(path) for path in snakemake.input.summaries}
scores = pilot_scores(summaries, snakemake.params.variants)
cost = costs(scores, snakemake.params.benchmarks).set_index("method")["all"].rename("seconds")
answers = [
    read_answers(path).assign(method=method, replicate=replicate)
    for (method, replicate), path in zip(snakemake.params.models, snakemake.input.results)
]
table = margins(pd.concat(answers)).join(cost, on="method")
selected = len(pd.read_parquet(snakemake.input.manifest, columns=["sample_id"]))
questions = len(pd.read_parquet(snakemake.input.holdout, columns=["sample_id"]))
design = (
    f"{snakemake.params.model} was finetuned on {scores['fraction'].iloc[0]:.0%} of {selected:,} samples and asked "
    f"{questions:,} held-out questions; scores are averages over sources."
)
stages = stage_times(folder for folder in snakemake.params.folders if Path(folder).is_dir())
with replacing(snakemake.output.table) as path:
    table.to_csv(path, index=False)
with replacing(snakemake.output.text) as path:
    path.write_text(as_text(table, design=design, stages=stages))
