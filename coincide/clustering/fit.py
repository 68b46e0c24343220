"""How well new samples fit centroids that are not theirs: those of a finished run (`clustering.centroids`)."""

from __future__ import annotations

import logging

import pandas as pd

log = logging.getLogger(__name__)


def centroid_fit(
    earlier: pd.DataFrame, clusters: pd.DataFrame, manifest: pd.DataFrame, *, quantile: float
) -> pd.DataFrame:
    """How many new samples are farther from their centroid than nearly all samples of the finished run.

    A new sample fits badly if its similarity to its centroid is below the quantile of the similarities in the finished
    run. If new samples are like the old ones, about this share of them fits badly.

    Args:
        earlier: table of sample_id, similarity of the finished run.
        clusters: the same of all samples.
        manifest: table of sample_id, source.
        quantile: of the similarities in the finished run.

    Returns:
        one row per source with new samples, those with the most that fit badly first: source, new, badly.
    """
    limit = earlier["similarity"].quantile(quantile)
    new = clusters.loc[~clusters["sample_id"].isin(earlier["sample_id"]), ["sample_id", "similarity"]]
    new = new.merge(manifest[["sample_id", "source"]], on="sample_id")
    table = new.assign(badly=new["similarity"] < limit).groupby("source")["badly"].agg(new="size", badly="sum")
    table = table.astype(int).reset_index()
    table = table.sort_values(["badly", "new"], ascending=False, kind="stable", ignore_index=True)
    log.info(
        "%d of %d new samples fit the given centroids badly: their similarity is below %.4f, that of %g of the earlier "
        "samples",
        table["badly"].sum(), table["new"].sum(), limit, quantile,
    )  # fmt: skip
    return table
