"""Transferability of clusters (paper section 3.3; DESIGN step 3)."""

import numpy as np

from coincide.rows import unit_rows

ROWS_PER_BLOCK = 1024  # centroids compared at once: two blocks of them and their cosines are held in float64


def transferability(centroids, *, blocks=None, exclude_above=0.9):
    """Mean cosine similarity of each centroid with the centroids that are not near-copies of it.

    T_i = mean of cos(e_i, e_j) over all j with cos(e_i, e_j) <= exclude_above.

    Args:
        centroids: (K, d) array, one centroid a row.
        blocks: columns to take the cosine over: None for all, a (d,) boolean mask, or a list of
            slices. The published code takes the text blocks alone.
        exclude_above: centroids with a cosine above this (i itself among them) are left out.

    Returns:
        (K,) float64, without unit, in [-1, exclude_above]. Where no centroid is left to average,
        the value is `exclude_above`: all others are at least that similar.

    Raises:
        ValueError: wrong shape of `centroids` or of `blocks`.

    Source: Lee, Li, Hwang (EMNLP 2024), section 3.3, equation for S_i.

    >>> import numpy as np
    >>> transferability(np.eye(3)).tolist()
    [0.0, 0.0, 0.0]
    """
    centroids = np.asarray(centroids)
    if centroids.ndim != 2 or 0 in centroids.shape:
        raise ValueError(f"centroids must have shape (K, d) with K, d > 0; got {centroids.shape}")
    columns = _columns(centroids, blocks)
    k = len(columns)
    total, count = np.zeros(k), np.zeros(k, dtype=np.int64)
    parts = [slice(start, start + ROWS_PER_BLOCK) for start in range(0, k, ROWS_PER_BLOCK)]
    for i, a in enumerate(parts):  # cosine is symmetric: each pair of blocks once
        unit = unit_rows(columns[a].astype(np.float64))
        for b in parts[i:]:
            cosine = unit @ (unit if a == b else unit_rows(columns[b].astype(np.float64))).T
            kept = cosine <= exclude_above
            if a == b:  # i itself is left out also where its cosine rounds, or is a zero row's zero
                np.fill_diagonal(kept, False)
            cosine[~kept] = 0.0
            total[a] += cosine.sum(axis=1)
            count[a] += kept.sum(axis=1)
            if a != b:
                total[b] += cosine.sum(axis=0)
                count[b] += kept.sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), exclude_above)


def _columns(centroids, blocks):
    if blocks is None:
        return centroids
    if isinstance(blocks, np.ndarray) and blocks.dtype == bool:
        if blocks.shape != (centroids.shape[1],):
            raise ValueError(f"blocks is a mask of shape {blocks.shape}, centroids have {centroids.shape[1]} columns")
        selected = centroids[:, blocks]
    else:
        selected = np.concatenate([centroids[:, block] for block in blocks], axis=1)
    if selected.shape[1] == 0:
        raise ValueError("blocks selects no column")
    return selected
