"""The Gaussian kernel that density and picks share (paper section 3.3; DESIGN step 4)."""

import numpy as np


def gaussian_kernel(x, y=None, *, gamma=1.0):
    """Gaussian kernel exp(-|x_i - y_j|² / (2γ²)) in float64.

    Args:
        x: (n, d) array.
        y: (m, d) array, or None for x against itself (diagonal exactly 1).
        gamma: kernel width γ, in the units of x.

    Returns:
        (n, m) float64 array.
    """
    # Centring leaves distances as they are and keeps |x|² + |y|² - 2xy from cancelling:
    # activations share a strong common mean.
    x = np.asarray(x, dtype=np.float64)
    centre = x.mean(axis=0)
    x = x - centre
    itself = y is None
    y = x if itself else np.asarray(y, dtype=np.float64) - centre
    squared = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)[None, :] - 2.0 * (x @ y.T)
    np.maximum(squared, 0.0, out=squared)
    if itself:
        np.fill_diagonal(squared, 0.0)
    squared *= -0.5 / gamma**2
    return np.exp(squared, out=squared)
