"""Reading (n, d) data that is an array, row blocks, or activations on disk."""

import numpy as np


class Rows:
    """Rows of x, wherever they are: in memory, or fetched from disk as they are asked for.

    Args:
        x: (n, d) array; or an iterable of (n_i, d) arrays in row order, which is brought into
            memory; or an object with `shape`, `rows(indices)` and iteration over row blocks, such
            as `coincide.storage.Activations`, which is not.

    Raises:
        ValueError: if x is not two-dimensional or is empty.
    """

    def __init__(self, x):
        self.on_disk = hasattr(x, "rows") and hasattr(x, "shape")
        if not self.on_disk and not isinstance(x, np.ndarray):
            x = np.concatenate([np.asarray(block) for block in x])
        if len(x.shape) != 2 or 0 in x.shape:
            raise ValueError(f"x must have shape (n, d) with n, d > 0; got shape {tuple(x.shape)}")
        self.x, self.shape = x, tuple(x.shape)

    def __len__(self):
        return self.shape[0]

    def take(self, indices):
        """(len(indices), d) array of the rows at these positions.

        Raises:
            ValueError: a row with NaN or infinity among them.
        """
        rows = self.x.rows(indices) if self.on_disk else self.x[indices]
        _check_finite(rows, indices)
        return rows

    def blocks(self, size):
        """Yield (start, rows) over all rows in order, at most `size` rows at a time.

        Raises:
            ValueError: a row with NaN or infinity.
        """
        start = 0
        for part in self.x if self.on_disk else [self.x]:
            for first in range(0, len(part), size):
                rows = part[first : first + size]
                _check_finite(rows, range(start, start + len(rows)))
                yield start, rows
                start += len(rows)


def _check_finite(rows, positions):
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"x has {np.count_nonzero(~finite)} rows with NaN or infinity, the first is row "
            f"{positions[int(np.argmin(finite))]}"
        )


def members_by_cluster(labels, k):
    """Split row positions by cluster, each in ascending order.

    Args:
        labels: (n,) integer cluster of each row, in 0..k-1.
        k: number of clusters.

    Returns:
        List of k int64 arrays.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or (labels.size and not 0 <= labels.min() <= labels.max() < k):
        raise ValueError(f"labels must be a vector of integers in 0..{k - 1}")
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.cumsum(np.bincount(labels, minlength=k))[:-1])


def unit_rows(x):
    """Scale each row of x (n, d) to unit L2 norm in its own dtype; zero rows stay zero."""
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norm > 0, norm, 1)
