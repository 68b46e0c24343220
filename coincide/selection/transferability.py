"""Transferability of clusters (paper section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import torch

ROWS_PER_BLOCK = 1024  # centroids compared at a time: two blocks and their cosines are held in float64


def transferability(
    centroids: ArrayLike,
    *,
    blocks: NDArray[np.bool_] | Sequence[slice] | None = None,
    exclude_above: float = 0.9,
    device: str = "cpu",
) -> NDArray[np.float64]:
    """Mean cosine similarity of each centroid with the centroids that are not near-copies of it.

    T_i = mean of cos(e_i, e_j) over all j with cos(e_i, e_j) <= exclude_above.

    Args:
        centroids: (K, d) array, one centroid per row.
        blocks: columns that the cosine is computed over: None for all, a (d,) boolean mask, or a list of
            slices. The published code uses only the text blocks.
        exclude_above: centroids with a cosine above this, i itself included, are left out of the mean.
        device: torch device.

    Returns:
        (K,) float64, dimensionless, in [-1, exclude_above]. Where no centroid remains to average,
        the value is `exclude_above`: all others are more similar than that.

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
    row_blocks = [slice(start, start + ROWS_PER_BLOCK) for start in range(0, k, ROWS_PER_BLOCK)]
    for i, a in enumerate(row_blocks):  # cosine is symmetric: each pair of blocks is computed once
        unit = _unit(columns[a], device)
        for b in row_blocks[i:]:
            cosine = unit @ (unit if a == b else _unit(columns[b], device)).T
            included = cosine <= exclude_above
            if a == b:  # leave i itself out explicitly: rounding, or a zero row, can put its cosine below the limit
                included.fill_diagonal_(False)
            cosine.masked_fill_(~included, 0.0)
            total[a] += cosine.sum(dim=1)
            count[a] += included.sum(dim=1)
            if a != b:
                total[b] += cosine.sum(dim=0)
                count[b] += included.sum(dim=0)
    mean = (total / count.clamp(min=1)).cpu().numpy()
    return np.where(count.cpu().numpy() > 0, mean, exclude_above)


def _unit(rows: torch.Tensor, device: str) -> torch.Tensor:
    rows = rows.to(device).double()
    norm = rows.norm(dim=1, keepdim=True)
    return rows / norm.masked_fill(norm == 0, 1)


def _columns(centroids: NDArray, blocks: NDArray[np.bool_] | Sequence[slice] | None) -> NDArray:
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
