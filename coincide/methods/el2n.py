"""EL2N (Paul, Ganguli, Dziugaite 2021): the L2 norm of the reference model's error on the answer tokens."""

from typing import Literal

from coincide.selection.ranking import band

NEEDS = ("sample_metrics",)


def picks(tables, count, *, seed, keep: Literal["top", "middle", "bottom"] = "middle"):
    """A band of the scores; which one is best depends on model and data."""
    scores = tables.sample_metrics["el2n"]
    return band(scores, count, keep), scores
