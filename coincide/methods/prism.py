"""PRISM (Bi et al. 2026): the samples whose images are least like the others, by vision features without their mean.

The vision feature of a sample is the mean over its visual tokens after the first decoder layer of the reference model.
Samples without an image have none. The same fraction of them is kept, drawn at random.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from coincide.base.rows import unit_rows
from coincide.selection.ranking import highest_of_groups

if TYPE_CHECKING:
    from coincide.methods._inputs import MethodInputs

NEEDS = ("sample_metrics", "vision_features")


def pick(inputs: "MethodInputs", count: int, *, seed: int) -> tuple[NDArray, NDArray]:
    """Keep the samples with the lowest redundancy; the scores are the negative redundancy, NaN without an image."""
    features = np.asarray(inputs.embedding("vision"), np.float32)
    has_image = features.any(axis=1)
    scores = np.full(len(features), np.nan)
    scores[has_image] = -redundancy(features[has_image])
    draws = np.random.default_rng(seed).random(len(scores))
    order = highest_of_groups(np.where(has_image, scores, draws), (~has_image).astype(int), count)
    return order, scores


def redundancy(features: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean correlation of each row with all others: the mean of the cosines after subtracting the mean row.

    Since the sum of the cosines with all rows is the dot product with the sum of the unit rows, it takes time n·d.

    Args:
        features: (n, d) rows.

    Returns:
        (n,) numbers from -1 to 1; 0 for a single row. A row that equals the mean has correlation 0 with all.

    Source: Bi et al. (2026), redundancy score.

    >>> redundancy(np.float32([[0, 1], [0, 3], [0, 5], [0, 7]])).round(3).tolist()
    [-0.333, -0.333, -0.333, -0.333]
    """
    n = len(features)
    unit = unit_rows(features.astype(np.float64) - features.mean(axis=0, dtype=np.float64))
    own = (unit * unit).sum(axis=1)
    return (unit @ unit.sum(axis=0) - own) / max(n - 1, 1)
