"""Random: uniformly at random, without replacement."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from coincide.methods._inputs import MethodInputs

NEEDS = ()


def pick(inputs: "MethodInputs", count: int, *, seed: int) -> tuple[NDArray, NDArray]:
    """Draw a number for every row; keep the rows with the smallest."""
    draws = np.random.default_rng(seed).random(len(inputs.clusters))
    return np.argsort(draws, kind="stable")[:count], draws
