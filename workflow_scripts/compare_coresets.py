"""Compare the coresets of two runs, or two coresets: what they share by source and cluster, and where budgets moved.

Reads the manifest, the clusters and the coresets of both sides. Writes CSV tables, the comparison as Markdown, and a
page.
"""

from coincide.workflow.job import start

start(snakemake)

import pandas as pd

from coincide.base.files import replacing
from coincide.study.coreset_comparison import as_text, compare_coresets, write_page

inputs, outputs = snakemake.input, snakemake.output


def read_samples(side: str) -> pd.DataFrame:
    """sample_id, source and cluster of every sample of a side."""
    manifest = pd.read_parquet(inputs[f"manifest_{side}"], columns=["sample_id", "source"])
    clusters = pd.read_parquet(inputs[f"clusters_{side}"], columns=["sample_id", "cluster"])
    return manifest.merge(clusters, on="sample_id")


def read_ids(path: str) -> pd.Series:
    """Ids of the samples of a coreset."""
    return pd.read_parquet(path, columns=["sample_id"])["sample_id"]


pairs = {label: (read_ids(a), read_ids(b)) for label, (a, b) in snakemake.params.pairs.items()}
comparison = compare_coresets(read_samples("a"), read_samples("b"), pairs, names=tuple(snakemake.params.names))
for name in ("coresets", "sources", "clusters"):
    with replacing(outputs[name]) as path:
        getattr(comparison, name).to_csv(path, index=False)
write_page(comparison, outputs.page)
with replacing(outputs.text) as path:
    path.write_text(as_text(comparison), encoding="utf-8")
