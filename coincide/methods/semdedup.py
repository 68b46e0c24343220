"""SemDeDup (Abbas et al. 2023): removes near-copies, by the embedding of the last token in the last layer.

Samples are clustered by spherical k-means. Of two members of a cluster whose cosine exceeds 1 - ε, the
one farther from the centroid is kept. The published code leaves the choice of ε to the user; here it is
the ε that keeps the requested number of samples.
"""

import logging
from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

if TYPE_CHECKING:
    from coincide.base.clustered_rows import ClusteredRows
    from coincide.methods._inputs import MethodInputs

log = logging.getLogger(__name__)

NEEDS = ("sample_metrics",)
PUBLISHED_CLUSTERS = 10_000
SAMPLES_PER_CLUSTER = 66  # LLaVA-665K in the published number of clusters
ROWS_PER_BLOCK = 1024  # rows compared at a time


def pick(
    inputs: "MethodInputs", count: int, *, seed: int, k: Annotated[int, Field(ge=1)] | None = None
) -> tuple[NDArray, NDArray]:
    """Keep the samples least similar to any that is preferred to them.

    k is the number of clusters; None: one per SAMPLES_PER_CLUSTER samples, at most PUBLISHED_CLUSTERS.
    """
    from coincide.base.clustered_rows import ClusteredRows
    from coincide.clustering.kmeans import spherical_kmeans

    x = inputs.embedding("last_token")
    k = k or min(PUBLISHED_CLUSTERS, max(1, len(x) // SAMPLES_PER_CLUSTER))
    clustering = spherical_kmeans(x, k, seed=seed)
    cosine = redundancy(ClusteredRows(x, clustering.labels), clustering.similarity)
    order = np.argsort(cosine, kind="stable")
    log.info("SemDeDup: ε = %.4f keeps %d of %d samples", 1 - cosine[order[count - 1]], count, len(x))
    return order[:count], -cosine


def redundancy(clustered: "ClusteredRows", similarity: NDArray) -> NDArray[np.float64]:
    """Largest cosine of each row with the members of its cluster that are farther from the centroid.

    With a threshold of 1 - ε on it, the rows that remain are those of the paper.

    Args:
        clustered: embeddings and their clusters.
        similarity: (n,) cosine of each row with its centroid; of equal ones, the first row counts as farther.

    Returns:
        (n,) float64; -1 for the row that is farthest from its centroid.
    """
    # positions among the members of each cluster, the farthest from the centroid first
    orders = [np.argsort(similarity[members], kind="stable") for members in clustered.members]
    cosines = clustered.map(lambda c, rows: _largest_cosine_before(rows[orders[c]]), description="SemDeDup")
    result = np.empty(len(similarity))
    for members, order, values in zip(clustered.members, orders, cosines):
        result[members[order]] = values
    return result


def _largest_cosine_before(rows: NDArray) -> NDArray[np.float64]:
    """(n,) largest cosine of each row with the rows before it; -1 for the first."""
    from coincide.base.rows import unit_rows

    unit = unit_rows(rows.astype(np.float32))
    result = np.full(len(unit), -1.0)
    for start in range(0, len(unit), ROWS_PER_BLOCK):
        block = unit[start : start + ROWS_PER_BLOCK]
        cosine = block @ unit[: start + len(block)].T
        row, column = np.arange(len(block))[:, None] + start, np.arange(cosine.shape[1])
        cosine[column >= row] = -1
        result[start : start + ROWS_PER_BLOCK] = cosine.max(axis=1)
    return result
