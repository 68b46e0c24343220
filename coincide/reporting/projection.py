"""Positions for the plots of a report: a map of activations, and an order of centroids."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage

from coincide.base.rows import unit_rows

COMPONENTS = 50  # principal components that neighbours are taken from
PERPLEXITY = 30
ITERATIONS = 600


def principal_components(x: NDArray[np.floating], n_components: int = COMPONENTS) -> tuple[NDArray, NDArray]:
    """Coordinates of rows on their principal components.

    Args:
        x: (n, d) array.
        n_components: at most min(n, d) are returned.

    Returns:
        ((n, c) float64 coordinates, (c,) shares of the variance).
    """
    from sklearn.decomposition import PCA

    count = min(n_components, *x.shape)
    solver = "randomized" if min(x.shape) > 10 * count else "full"
    pca = PCA(count, svd_solver=solver, random_state=0)
    with np.errstate(invalid="ignore"):  # all rows are the same
        coordinates = pca.fit_transform(np.asarray(x, np.float64))
    return coordinates, np.nan_to_num(pca.explained_variance_ratio_)


def neighbour_map(components: NDArray[np.float64]) -> NDArray[np.float64]:
    """Two-dimensional map in which neighbouring rows stay neighbours (t-SNE, from the first two components).

    Args:
        components: (n, c) coordinates of `principal_components`.

    Returns:
        (n, 2) array. With fewer than five rows, or if all are the same, the first two components.

    Source: van der Maaten, Hinton (JMLR 2008); Kobak, Berens (Nature Communications 2019) on the initial positions.
    """
    two = np.pad(components[:, :2], ((0, 0), (0, 2 - min(2, components.shape[1]))))
    if len(components) < 5 or np.ptp(components) == 0:
        return two
    from sklearn.manifold import TSNE

    start = two / max(two[:, 0].std(), 1e-12) * 1e-4
    perplexity = min(PERPLEXITY, (len(components) - 1) / 3)
    map_of = TSNE(perplexity=perplexity, init=start.astype(np.float32), max_iter=ITERATIONS, random_state=0)
    return map_of.fit_transform(components)


def similarity_order(centroids: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Cosine similarity of centroids, and an order in which similar ones are next to each other.

    The order is that of the leaves of average-linkage clustering, arranged for the shortest way.

    Args:
        centroids: (K, d) array.

    Returns:
        ((K, K) cosine in the given order, (K,) order).

    Source: Bar-Joseph, Gifford, Jaakkola (Bioinformatics 2001), optimal leaf ordering.
    """
    unit = unit_rows(np.asarray(centroids, np.float64))
    cosine = unit @ unit.T
    if len(unit) < 3:
        return cosine, np.arange(len(unit))
    distances = np.clip(1 - cosine[np.triu_indices(len(unit), 1)], 0, None)
    return cosine, leaves_list(linkage(distances, "average", optimal_ordering=True)).astype(np.int64)
