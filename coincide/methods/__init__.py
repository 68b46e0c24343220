"""Methods that choose a coreset beside coincide, to compare with: one module each.

A module has NEEDS, of "scores", "clip_scores" and "difficulty" what it reads beside clusters, and a function

    picks(tables, count, *, seed, …settings) -> (indices, scores)

of `Tables`, the number of samples to keep and the settings of `selection.method_settings`: (count,) rows in
the order of their rank, and (n,) the numbers that it ranks by. What stands in this folder can be named in
`selection.methods`; docs/methods.md adds one.
"""

import importlib
import inspect
import pkgutil
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import ConfigDict, ValidationError, create_model

from coincide.tables import clip_embeddings, of_samples

EXACT = 100_000  # rows up to which `nearest` compares each with each


class Tables:
    """What a method reads of a run, each when it is asked for. Row i is the same sample in all of them.

    Args:
        clusters: path of clusters.parquet.
        activations: folder of the activations.
        scores: folder of the reference model's scores, for methods that need it.
        clip_scores: paths of the tables of all shards, for methods that need them.
        difficulty: path of difficulty.parquet, for methods that need it.
    """

    def __init__(self, clusters, activations, scores=None, clip_scores=(), difficulty=None):
        self._paths = {"clusters": clusters, "activations": activations, "scores": scores}
        self._paths |= {"clip_scores": clip_scores, "difficulty": difficulty}

    @cached_property
    def clusters(self):
        """Table of sample_id, cluster, similarity (cosine with the cluster's centroid)."""
        return pd.read_parquet(self._paths["clusters"])

    @property
    def activations(self):
        """(n, d) activations on disk."""
        return _on_disk(self._paths["activations"])

    @cached_property
    def scores(self):
        """Table of sample_id, loss, el2n, margin (see `coincide.scores`)."""
        return pd.read_parquet(Path(self._paths["scores"]) / "scores.parquet")

    def embedding(self, name):
        """(n, h) unit vectors on disk: last_token or mean, of the reference model's last layer."""
        return _on_disk(Path(self._paths["scores"]) / f"{name}.parquet")

    @cached_property
    def clip_scores(self):
        """(n,) cosine of image and text; NaN for a sample without an image."""
        return of_samples(self._paths["clip_scores"], "clip_score", self.clusters["sample_id"]).to_numpy()

    @cached_property
    def clip_embeddings(self):
        """(n, e) float16 image and text vectors of CLIP (see `coincide.clip`)."""
        return clip_embeddings(self._paths["clip_scores"], self.clusters["sample_id"])

    @cached_property
    def difficulty(self):
        """(n,) difficulty of each sample (see `coincide.difficulty`)."""
        return of_samples([self._paths["difficulty"]], "difficulty", self.clusters["sample_id"]).to_numpy()


def _on_disk(path):
    from coincide.storage import Activations  # this package is also read where the config is checked: keep it light

    return Activations(path)


@cache
def names():
    """Names of all methods of this folder."""
    return tuple(module.name for module in pkgutil.iter_modules(__path__))


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


def highest(scores, count):
    """(count,) rows with the highest scores, the highest first; ties: the first row."""
    return np.argsort(-np.asarray(scores, np.float64), kind="stable")[:count]


def nearest(x, k):
    """(squared distances, rows) of the k nearest other rows of each of n rows: (n, k) each, the nearest first.

    Up to EXACT rows each is compared with each; above, through an inverted file.
    """
    import faiss

    n, d = x.shape
    k = min(k, n - 1)
    if n <= EXACT:
        search = faiss.IndexFlatL2(d)
    else:
        search = faiss.IndexIVFFlat(faiss.IndexFlatL2(d), d, int(np.sqrt(n)))
        search.train(x)
        search.nprobe = 16
    search.add(x)
    squared, index = search.search(x, k + 1)
    # itself is among them, but for copies not always the first
    own = index == np.arange(n)[:, None]
    own[~own.any(axis=1), -1] = True
    return np.maximum(squared[~own].reshape(n, k), 0), index[~own].reshape(n, k)


def band(scores, count, keep):
    """(count,) rows of a band of the scores.

    Args:
        scores: (n,) numbers.
        count: rows to keep.
        keep: "top" (highest first), "bottom" (lowest first) or "middle" (nearest to the middle rank first).
    """
    scores = np.asarray(scores, np.float64)
    if keep == "top":
        return highest(scores, count)
    order = np.argsort(scores, kind="stable")
    if keep == "middle":
        order = order[np.argsort(np.abs(np.arange(len(order)) - (len(order) - 1) / 2), kind="stable")]
    return order[:count]
