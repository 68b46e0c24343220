"""SemDeDup (Abbas et al. 2023): near-copies go, by the embedding of the last token in the last layer.

Samples are clustered by spherical k-means. Of two members of a cluster whose cosine exceeds 1 - ε the
one farther from the centroid is kept. The published code has ε found by hand; here it is the one that
leaves the count asked for.
"""

import logging
from typing import Annotated

import numpy as np
from pydantic import Field

log = logging.getLogger(__name__)

NEEDS = ("sample_metrics",)
PAPERS_K = 10_000
SAMPLES_A_CLUSTER = 66  # of the paper's K on LLaVA-665K


def picks(tables, count, *, seed, k: Annotated[int, Field(ge=1)] | None = None):
    """The rows that are least like any that is kept before them; k: clusters, null for one a 66 samples."""
    from coincide.base.rows import Rows
    from coincide.clustering.kmeans import spherical_kmeans

    x = Rows(tables.embedding("last_token"))
    k = k or min(PAPERS_K, max(1, len(x) // SAMPLES_A_CLUSTER))
    clustering = spherical_kmeans(x.x, k, seed=seed)
    scores = likeness(x, clustering.labels, clustering.similarity)
    order = np.argsort(scores, kind="stable")
    log.info("SemDeDup: ε = %.4f leaves %d of %d samples", 1 - scores[order[count - 1]], count, len(x))
    return order[:count], -scores


def likeness(x, labels, similarity):
    """(n,) largest cosine of each row with the members of its cluster that are farther from the centroid.

    -1 for the farthest; ties in distance: the first row counts as farther. With a threshold of 1 - ε on
    it the rows that stay are those of the paper.
    """
    from coincide.base.rows import map_clusters, members_by_cluster

    members = members_by_cluster(labels, labels.max() + 1)
    members = [m[np.argsort(similarity[m], kind="stable")] for m in members]  # the farthest first
    result = np.empty(len(labels))
    for own, values in zip(members, map_clusters(lambda i, rows: _earlier(rows), x, members, "SemDeDup")):
        result[own] = values
    return result


def _earlier(rows, at_once=1024):
    """(n,) largest cosine of each row with those before it."""
    from coincide.base.rows import unit_rows

    unit = unit_rows(rows.astype(np.float32))
    result = np.full(len(unit), -1.0)
    for start in range(0, len(unit), at_once):
        part = unit[start : start + at_once]
        cosine = part @ unit[: start + len(part)].T
        cosine[np.arange(len(part))[:, None] + start <= np.arange(cosine.shape[1])] = -1
        result[start : start + at_once] = cosine.max(axis=1)
    return result
