"""EL2N (Paul, Ganguli, Dziugaite 2021): L2 norm of the reference model's error on the answer tokens."""

from typing import TYPE_CHECKING, Literal

from numpy.typing import NDArray

from coincide.selection.ranking import band

if TYPE_CHECKING:
    from coincide.methods._inputs import MethodInputs

NEEDS = ("sample_metrics",)


def pick(
    inputs: "MethodInputs", count: int, *, seed: int, keep: Literal["top", "middle", "bottom"] = "middle"
) -> tuple[NDArray, NDArray]:
    """Keep a band of the scores. Which band is best depends on the model and the data."""
    scores = inputs.sample_metrics["el2n"].to_numpy()
    return band(scores, count, keep), scores
