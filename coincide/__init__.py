"""COINCIDE data selection for vision-language models (arXiv 2406.10995), as plain functions on arrays.

Importing this package loads nothing: a function's module is imported on first use.
"""

import importlib

__version__ = "0.1.0"

_MODULES = {
    "Clustering": "coincide.clustering.kmeans",
    "Coreset": "coincide.selection.select",
    "allocate": "coincide.selection.budget",
    "density": "coincide.selection.density",
    "greedy_mmd": "coincide.selection.picks",
    "select": "coincide.selection.select",
    "spherical_kmeans": "coincide.clustering.kmeans",
    "transferability": "coincide.selection.transferability",
}
__all__ = list(_MODULES)


def __getattr__(name):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__():
    return sorted([*globals(), *_MODULES])
