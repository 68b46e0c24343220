"""The artefacts that a method may read."""

from functools import cached_property
from pathlib import Path

import pandas as pd

from coincide.base.activation_store import Activations
from coincide.base.tables import clip_embeddings, of_samples


class Tables:
    """What a method reads of a run, each when it is asked for. Row i is the same sample in all of them.

    Args:
        clusters: path of clusters.parquet.
        activations: folder of the activations.
        sample_metrics: folder of the reference model's sample metrics, for methods that need it.
        clip_scores: paths of the tables of all shards, for methods that need them.
        difficulty: path of difficulty.parquet, for methods that need it.
    """

    def __init__(self, clusters, activations, sample_metrics=None, clip_scores=(), difficulty=None):
        self._paths = {"clusters": clusters, "activations": activations, "sample_metrics": sample_metrics}
        self._paths |= {"clip_scores": clip_scores, "difficulty": difficulty}

    @cached_property
    def clusters(self):
        """Table of sample_id, cluster, similarity (cosine with the cluster's centroid)."""
        return pd.read_parquet(self._paths["clusters"])

    @property
    def activations(self):
        """(n, d) activations on disk."""
        return Activations(self._paths["activations"])

    @cached_property
    def sample_metrics(self):
        """Table of sample_id, loss, el2n, margin (see `coincide.extraction.sample_metrics`)."""
        return pd.read_parquet(Path(self._paths["sample_metrics"]) / "sample_metrics.parquet")

    def embedding(self, name):
        """(n, h) unit vectors on disk: last_token or mean, of the reference model's last layer."""
        return Activations(Path(self._paths["sample_metrics"]) / f"{name}.parquet")

    @cached_property
    def clip_scores(self):
        """(n,) cosine of image and text; NaN for a sample without an image."""
        return of_samples(self._paths["clip_scores"], "clip_score", self.clusters["sample_id"]).to_numpy()

    @cached_property
    def clip_embeddings(self):
        """(n, e) float16 image and text vectors of CLIP (see `coincide.extraction.clip`)."""
        return clip_embeddings(self._paths["clip_scores"], self.clusters["sample_id"])

    @cached_property
    def difficulty(self):
        """(n,) difficulty of each sample (see `coincide.training.difficulty`)."""
        return of_samples([self._paths["difficulty"]], "difficulty", self.clusters["sample_id"]).to_numpy()
