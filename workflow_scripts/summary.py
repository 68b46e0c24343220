"""Scores of every model on every task, and relative performance."""

from coincide.jobs import start

start(snakemake.log[0], snakemake.threads)

import pandas as pd

from coincide.files import replacing
from coincide.summary import as_text, read_results, relative_performance
from coincide.tables import write_table

summary = relative_performance(read_results(snakemake.input.results), learned_above=snakemake.params.learned_above)
write_table(summary, snakemake.output.parquet)
with replacing(snakemake.output.csv) as part:
    summary.to_csv(part, index=False)
with replacing(snakemake.output.text) as part:
    text = as_text(
        summary,
        pd.read_parquet(snakemake.input.rejected),
        pd.read_parquet(snakemake.input.manifest, columns=["sample_id", "source"]),
        {
            selection: pd.read_parquet(path, columns=["sample_id"])
            for selection, path in zip(snakemake.params.selections, snakemake.input.coresets)
        },
        report=snakemake.params.report,
    )
    part.write_text(text)
