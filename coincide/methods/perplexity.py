"""Perplexity (Marion et al. 2023) of the answers under the reference model; the middle is kept."""

from typing import Literal

import numpy as np

from coincide.methods import band

NEEDS = ("scores",)


def picks(tables, count, *, seed, keep: Literal["top", "middle", "bottom"] = "middle"):
    """A band of exp(mean loss of the answer tokens)."""
    scores = np.exp(tables.scores["loss"].astype(float))
    return band(scores, count, keep), scores
