"""Transferability of clusters (paper section 3.3; DESIGN step 3)."""

import numpy as np

ROWS_PER_BLOCK = 1024  # centroids compared at once: two blocks of them and their cosines are held in float64


def transferability(centroids, *, blocks=None, exclude_above=0.9, device="cpu"):
    """Mean cosine similarity of each centroid with the centroids that are not near-copies of it.

    T_i = mean of cos(e_i, e_j) over all j with cos(e_i, e_j) <= exclude_above.

    Args:
        centroids: (K, d) array, one centroid a row.
        blocks: columns to take the cosine over: None for all, a (d,) boolean mask, or a list of
            slices. The published code takes the text blocks alone.
        exclude_above: centroids with a cosine above this (i itself among them) are left out.
        device: torch device that multiplies.

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
    import torch

    centroids = np.asarray(centroids)
    if centroids.ndim != 2 or 0 in centroids.shape:
        raise ValueError(f"centroids must have shape (K, d) with K, d > 0; got {centroids.shape}")
    columns = torch.from_numpy(np.ascontiguousarray(_columns(centroids, blocks)))
    k = len(columns)
    total = torch.zeros(k, dtype=torch.float64, device=device)
    count = torch.zeros(k, dtype=torch.int64, device=device)
    parts = [slice(start, start + ROWS_PER_BLOCK) for start in range(0, k, ROWS_PER_BLOCK)]
    for i, a in enumerate(parts):  # cosine is symmetric: each pair of blocks once
        unit = _unit(columns[a], device)
        for b in parts[i:]:
            cosine = unit @ (unit if a == b else _unit(columns[b], device)).T
            kept = cosine <= exclude_above
            if a == b:  # i itself is left out also where its cosine rounds, or is a zero row's zero
                kept.fill_diagonal_(False)
            cosine.masked_fill_(~kept, 0.0)
            total[a] += cosine.sum(dim=1)
            count[a] += kept.sum(dim=1)
            if a != b:
                total[b] += cosine.sum(dim=0)
                count[b] += kept.sum(dim=0)
    total, count = total.cpu().numpy(), count.cpu().numpy()
    return np.where(count > 0, total / np.maximum(count, 1), exclude_above)


def _unit(rows, device):
    rows = rows.to(device).double()
    norm = rows.norm(dim=1, keepdim=True)
    return rows / norm.masked_fill(norm == 0, 1)


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
