"""CLIP-Score (Hessel et al. 2021): the cosine of a sample's image and text under CLIP, highest kept.

Samples without an image have no score: of them the same fraction is kept, drawn at random.
"""

import numpy as np

from coincide.selection.ranking import highest

NEEDS = ("clip_scores",)


def picks(tables, count, *, seed):
    """Highest scores first, then the samples without an image."""
    scores = tables.clip_scores
    without = np.flatnonzero(np.isnan(scores))
    of_these = count * len(without) // len(scores)
    drawn = np.random.default_rng(seed).permutation(without)
    best = highest(np.nan_to_num(scores, nan=-np.inf), min(count - of_these, len(scores) - len(without)))
    return np.concatenate([best, drawn[: count - len(best)]]), scores
