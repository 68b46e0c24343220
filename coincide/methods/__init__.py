"""Baselines: other methods that select a coreset, one module per method.

A module defines

- NEEDS: tuple of the artefacts that the method reads in addition to the clusters and the activations,
  from "sample_metrics", "clip_scores", "difficulty" and the values of reference_model.extra_metrics, which are
  part of the sample metrics;
- pick(inputs, count, *, seed, …settings) -> (indices, scores). `inputs` is a
  `coincide.methods._inputs.MethodInputs`, `count` the number of samples to keep, and the settings are
  those of `selection.method_settings`. `indices` are the (count,) rows to keep in the order of their
  rank, `scores` the (n,) numbers that the method ranks by.

Every module in this folder can be named in `selection.methods`. docs/methods.md shows how to add one.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, ValidationError, create_model

from coincide.base.errors import UserError
from coincide.base.sections import ExtraMetric

if TYPE_CHECKING:
    from coincide.methods._inputs import MethodInputs

EXTRA_METRICS = get_args(ExtraMetric)
ARTEFACTS = ("sample_metrics", "clip_scores", "difficulty", *EXTRA_METRICS)


@cache
def names() -> tuple[str, ...]:
    """Names of all methods in this folder."""
    return tuple(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def load(name: str) -> ModuleType:
    """The module of a method."""
    return importlib.import_module(f"{__name__}.{name}")


def needs(name: str) -> tuple[str, ...]:
    """Artefacts that a method reads in addition to the clusters; none for coincide and the full data.

    Raises:
        UserError: NEEDS is missing or is not a tuple of ARTEFACTS.
    """
    if name not in names():
        return ()
    declared = getattr(load(name), "NEEDS", None)
    if not isinstance(declared, tuple) or not set(declared) <= set(ARTEFACTS):
        raise UserError(
            f"method {name!r}: NEEDS is {declared!r}, but must be a tuple with names from {', '.join(ARTEFACTS)}, "
            f"or () for none; correct it in {load(name).__file__}"
        )
    return declared


def settings(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Settings of a method, with defaults filled in, checked against the annotations of its `pick`.

    Raises:
        ValueError: an unknown setting, or a value that its annotation does not allow.
    """
    parameters = inspect.signature(load(name).pick).parameters.values()
    fields: dict[str, Any] = {
        p.name: (p.annotation, p.default) for p in parameters if p.kind == p.KEYWORD_ONLY and p.name != "seed"
    }
    model = create_model(name, __config__=ConfigDict(extra="forbid", strict=True), **fields)
    try:
        return model.model_validate(values).model_dump()
    except ValidationError as error:
        messages = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}; got {e['input']!r}" for e in error.errors()]
        raise ValueError("; ".join(messages)) from None


def pick(
    name: str, inputs: MethodInputs, count: int, *, seed: int, values: dict[str, Any]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Run a method and check what it returns.

    Args:
        name: name of the method.
        inputs: artefacts of the run.
        count: number of samples to keep.
        seed: seed of random draws.
        values: settings of the method, as `settings` returns them.

    Returns:
        ((count,) rows to keep, in the order of their rank; (n,) scores).

    Raises:
        UserError: the method returns something else; the message names the method.
    """
    result = load(name).pick(inputs, count, seed=seed, **values)
    if not isinstance(result, tuple) or len(result) != 2:
        raise UserError(f"method {name!r}: pick must return (indices, scores); it returned {type(result).__name__}")
    indices, scores = np.asarray(result[0]), np.asarray(result[1])
    n = len(inputs.clusters)
    if indices.shape != (count,) or not np.issubdtype(indices.dtype, np.integer):
        raise UserError(
            f"method {name!r}: pick must return {count} integer indices of rows; "
            f"it returned shape {indices.shape}, dtype {indices.dtype}"
        )
    if len(np.unique(indices)) < count or not ((indices >= 0) & (indices < n)).all():
        raise UserError(f"method {name!r}: pick must return distinct indices in 0..{n - 1}; correct the method")
    if scores.shape != (n,):
        raise UserError(
            f"method {name!r}: pick must return one score for each of the {n} samples; it returned shape {scores.shape}"
        )
    return indices, scores
