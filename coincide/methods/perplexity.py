"""Perplexity (Marion et al. 2023) of the answers under the reference model; keeps the middle."""

from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from coincide.selection.ranking import band

if TYPE_CHECKING:
    from coincide.methods._inputs import MethodInputs

NEEDS = ("sample_metrics",)


def pick(
    inputs: "MethodInputs", count: int, *, seed: int, keep: Literal["top", "middle", "bottom"] = "middle"
) -> tuple[NDArray, NDArray]:
    """Keep a band of the perplexity, exp(mean loss of the answer tokens)."""
    perplexity = np.exp(inputs.sample_metrics["loss"].to_numpy(np.float64))
    return band(perplexity, count, keep), perplexity
