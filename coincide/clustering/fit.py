"""How well new samples fit centroids that are not theirs: those of a finished run (`clustering.centroids`)."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd

log = logging.getLogger(__name__)


def centroid_fit(
    earlier: pd.DataFrame, clusters: pd.DataFrame, manifest: pd.DataFrame, *, quantile: float
) -> pd.DataFrame:
    """How many new samples are farther from their centroid than nearly all samples of the finished run.

    A distance is 1 - similarity, in units of the mean distance of the finished run's members of the same cluster: a
    sample of a new kind may be as near to a centroid as members of wide clusters are to theirs. A new sample fits badly
    if its distance is above that of all but a share of the samples of the finished run. If new samples are like the old
    ones, about this share of them fits badly.

    Args:
        earlier: table of sample_id, cluster, similarity of the finished run.
        clusters: the same of all samples.
        manifest: table of sample_id, source.
        quantile: the share.

    Returns:
        one row per source with new samples, those with the most that fit badly first: source, new, badly.
    """
    widths = _widths(earlier, 1 + max(earlier["cluster"].max(), clusters["cluster"].max()))
    limit = _distances(earlier, widths).quantile(1 - quantile)
    new = clusters[~clusters["sample_id"].isin(earlier["sample_id"])]
    new = new.merge(manifest[["sample_id", "source"]], on="sample_id")
    table = new.assign(badly=_distances(new, widths) > limit).groupby("source")["badly"].agg(new="size", badly="sum")
    table = table.astype(int).reset_index()
    table = table.sort_values(["badly", "new"], ascending=False, kind="stable", ignore_index=True)
    log.info(
        "%d of %d new samples fit the given centroids badly: their distance is above %.2f times the mean of their "
        "cluster, that of %g of the earlier samples",
        table["badly"].sum(), table["new"].sum(), limit, quantile,
    )  # fmt: skip
    return table


def _distances(table, widths):
    """(n,) distance of each sample to its centroid, relative to the width of its cluster."""
    return (1 - table["similarity"]) / widths[table["cluster"]]


def _widths(earlier, k):
    """(K,) mean distance of the members of each cluster, with one more member that has the mean of all.

    A cluster of one member has no width of its own, and one without members has that of all.
    """
    distances = 1 - earlier["similarity"]
    sums = np.bincount(earlier["cluster"], weights=distances, minlength=k)
    return (sums + distances.mean()) / (np.bincount(earlier["cluster"], minlength=k) + 1)
