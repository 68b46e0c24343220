"""Perplexity (Marion et al. 2023) of the answers under the reference model; the middle is kept."""

from typing import Literal

import numpy as np

from coincide.selection.ranking import band

NEEDS = ("sample_metrics",)


def picks(tables, count, *, seed, keep: Literal["top", "middle", "bottom"] = "middle"):
    """A band of exp(mean loss of the answer tokens)."""
    scores = np.exp(tables.sample_metrics["loss"].astype(float))
    return band(scores, count, keep), scores
