"""Methods that choose a coreset beside coincide, to compare with: one module each.

A module has NEEDS, of "sample_metrics", "clip_scores" and "difficulty" what it reads beside clusters, and a function

    picks(tables, count, *, seed, …settings) -> (indices, scores)

of `Tables`, the number of samples to keep and the settings of `selection.method_settings`: (count,) rows in
the order of their rank, and (n,) the numbers that it ranks by. What stands in this folder can be named in
`selection.methods`; docs/methods.md adds one.
"""

import importlib
import inspect
import pkgutil
from functools import cache

from pydantic import ConfigDict, ValidationError, create_model


@cache
def names():
    """Names of all methods of this folder."""
    return tuple(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def method(name):
    """The module of a method."""
    return importlib.import_module(f"{__name__}.{name}")


def needs(name):
    """Artefacts that a method reads beside clusters; none for coincide and the full data."""
    return method(name).NEEDS if name in names() else ()


def settings(name, given):
    """Settings of a method: those given, checked against the annotations of its `picks`, and its defaults.

    Raises:
        ValueError: an unknown setting or a value that its annotation does not allow; one line each.
    """
    parameters = list(inspect.signature(method(name).picks).parameters.values())
    own = {p.name: (p.annotation, p.default) for p in parameters if p.kind == p.KEYWORD_ONLY and p.name != "seed"}
    model = create_model(name, __config__=ConfigDict(extra="forbid", strict=True), **own)
    try:
        return model.model_validate(given).model_dump()
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}, it is {e['input']!r}" for e in error.errors()]
        raise ValueError("; ".join(lines)) from None
