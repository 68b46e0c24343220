"""Self-Sup (Sorscher et al. 2022): distance from the prototypes of k-means.

The prototypes are the centroids of the run.
"""

from typing import TYPE_CHECKING, Literal

from numpy.typing import NDArray

from coincide.selection.ranking import band

if TYPE_CHECKING:
    from coincide.methods._inputs import MethodInputs

NEEDS = ()


def pick(
    inputs: "MethodInputs", count: int, *, seed: int, keep: Literal["nearest", "farthest"] = "nearest"
) -> tuple[NDArray, NDArray]:
    """Keep the samples nearest to their prototype (easy; for small fractions) or the farthest (hard; for large)."""
    similarity = inputs.clusters["similarity"].to_numpy()
    return band(similarity, count, "top" if keep == "nearest" else "bottom"), similarity
