"""Self-Sup (Sorscher et al. 2022): by the distance from the prototypes that k-means finds.

The prototypes are the run's own centroids.
"""

from typing import Literal

from coincide.selection.ranking import band

NEEDS = ()


def picks(tables, count, *, seed, keep: Literal["nearest", "farthest"] = "nearest"):
    """Nearest: easy samples, for small fractions; farthest: hard ones, for large."""
    similarity = tables.clusters["similarity"]
    return band(similarity, count, "top" if keep == "nearest" else "bottom"), similarity
