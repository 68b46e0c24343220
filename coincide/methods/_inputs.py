"""The artefacts of a run that a method may read."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from coincide.base.activation_store import Activations
from coincide.base.errors import UserError
from coincide.base.tables import read_clip_embeddings, read_column


class MethodInputs:
    """Artefacts of a run, each read when it is first used. Row i is the same sample in all of them.

    Args:
        clusters: path of clusters.parquet.
        activations: folder of the activations.
        sample_metrics: folder of the reference model's sample metrics; empty for methods that do not need it.
        clip_scores: paths of the tables of all shards; empty for methods that do not need them.
        difficulty: path of difficulty.parquet; empty for methods that do not need it.
        method: name of the method, for errors.

    Raises:
        UserError: when an artefact is read that the method does not declare in NEEDS.
    """

    def __init__(
        self,
        clusters: Path | str,
        activations: Path | str,
        sample_metrics: Path | str | None = None,
        clip_scores: Sequence[Path | str] = (),
        difficulty: Path | str | None = None,
        *,
        method: str = "",
    ):
        self._paths: dict[str, Any] = {
            "clusters": clusters,
            "activations": activations,
            "sample_metrics": sample_metrics,
            "clip_scores": clip_scores,
            "difficulty": difficulty,
        }
        self._method = method

    def _path(self, artefact):
        if not self._paths[artefact]:
            raise UserError(f"method {self._method!r} reads {artefact}: add {artefact!r} to its NEEDS")
        return self._paths[artefact]

    @cached_property
    def clusters(self) -> pd.DataFrame:
        """Table of sample_id, cluster, similarity (cosine with the cluster's centroid)."""
        return pd.read_parquet(self._path("clusters"))

    @property
    def activations(self) -> Activations:
        """(n, d) activations on disk."""
        return Activations(self._path("activations"))

    @cached_property
    def sample_metrics(self) -> pd.DataFrame:
        """Table of sample_id, loss, el2n, margin and the extra metrics (see `coincide.extraction.sample_metrics`)."""
        return pd.read_parquet(Path(self._path("sample_metrics")) / "sample_metrics.parquet")

    def embedding(self, name: Literal["last_token", "mean", "question", "vision"]) -> Activations:
        """(n, h) vectors of the reference model on disk.

        From its last layer: last_token and question (with the extra metric loss_no_image) have unit norm, mean is
        unscaled. After its first layer: vision (with vision_features), unscaled, zeros for a sample without an image.
        """
        return Activations(Path(self._path("sample_metrics")) / f"{name}.parquet")

    @cached_property
    def clip_scores(self) -> NDArray[np.float64]:
        """(n,) cosine of image and text; NaN for a sample without an image."""
        return read_column(self._path("clip_scores"), "clip_score", self.clusters["sample_id"]).to_numpy()

    @cached_property
    def clip_embeddings(self) -> NDArray[np.float32]:
        """(n, e) image and text vectors of CLIP (see `coincide.extraction.clip`)."""
        return read_clip_embeddings(self._path("clip_scores"), self.clusters["sample_id"])

    @cached_property
    def difficulty(self) -> NDArray[np.float64]:
        """(n,) difficulty of each sample (see `coincide.training.difficulty`)."""
        return read_column([self._path("difficulty")], "difficulty", self.clusters["sample_id"]).to_numpy()
