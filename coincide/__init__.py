"""COINCIDE data selection for vision-language models (arXiv 2406.10995), as plain functions on arrays."""

from coincide.budget import allocate
from coincide.clusters import Clustering, spherical_kmeans
from coincide.coreset import Coreset, select
from coincide.density import density
from coincide.picks import greedy_mmd
from coincide.transferability import transferability

__version__ = "0.1.0"
__all__ = [
    "Clustering",
    "Coreset",
    "allocate",
    "density",
    "greedy_mmd",
    "select",
    "spherical_kmeans",
    "transferability",
]
