"""CLIP-Score (Hessel et al. 2021): cosine of a sample's image and text under CLIP; keeps the highest.

Samples without an image have no score. The same fraction of them is kept, drawn at random.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from coincide.selection.ranking import highest

if TYPE_CHECKING:
    from coincide.methods._inputs import MethodInputs

NEEDS = ("clip_scores",)


def pick(inputs: "MethodInputs", count: int, *, seed: int) -> tuple[NDArray, NDArray]:
    """Keep the samples with the highest scores, then the drawn samples without an image."""
    scores = inputs.clip_scores
    text_only = np.flatnonzero(np.isnan(scores))
    with_image = len(scores) - len(text_only)
    text_only_count = count * len(text_only) // len(scores)
    best = highest(np.nan_to_num(scores, nan=-np.inf), min(count - text_only_count, with_image))
    drawn = np.random.default_rng(seed).permutation(text_only)[: count - len(best)]
    return np.concatenate([best, drawn]), scores
