"""Activations that a finished run has computed already, for samples that are the same (`dataset.extends`)."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from coincide.base.activation_store import Activations
from coincide.base.errors import UserError
from coincide.dataset.earlier import check_earlier_run, same_records
from coincide.dataset.samples import Sample
from coincide.extraction.sample_metrics import EMBEDDINGS, METRICS

log = logging.getLogger(__name__)

# of the metadata of activations: what has to be the same
COMPARED = ("model", "weights", "model_dtype", "layers", "hidden_size", "blocks", "settings")


class EarlierRows:
    """The rows of a finished run for samples of a shard, found by id and record.

    Args:
        folder: of the finished run, results/<run>.
        shard: file of the shard's samples (`coincide.dataset.shards`).
        sample_metrics: also read the sample metrics.

    Raises:
        UserError: the run has no activations or no sample metrics.
    """

    def __init__(self, folder: str | Path, shard: str | Path, *, sample_metrics: bool):
        self.folder = Path(folder)
        check_earlier_run(folder, sample_metrics=sample_metrics)
        self.activations = Activations(self.folder / "activations.parquet")
        same = same_records(shard, sorted((self.folder / "shards").glob("shard-*.jsonl")))
        rows = {sample_id: row for row, sample_id in enumerate(self.activations.sample_ids) if sample_id in same}
        self.rows: Mapping[str, int] = rows
        self._metrics_folder = self.folder / "sample_metrics" if sample_metrics else None

    def check(self, metadata: Mapping[str, Any]) -> None:
        """Check that the rows are what this run would compute.

        Args:
            metadata: of the activations of this run.

        Raises:
            UserError: they come from another model or other settings.
        """
        earlier = self.activations.metadata[0]
        different = [name for name in COMPARED if earlier.get(name) != json.loads(json.dumps(metadata[name]))]
        if different:
            listed = ", ".join(f"{name} ({earlier.get(name)!r}, here {metadata[name]!r})" for name in different)
            raise UserError(
                f"the activations of {self.folder} cannot be reused; these differ: {listed}. Set reference_model as in "
                "that run, or remove dataset.extends"
            )

    def __contains__(self, sample: Sample) -> bool:
        return sample.id in self.rows

    def vectors(self, samples: Sequence[Sample]) -> NDArray[np.float32]:
        """(n, d) vectors of samples that are among the rows, as in extraction: activation, then sample metrics."""
        rows = [self.rows[sample.id] for sample in samples]
        parts = [self.activations.rows(rows)]
        if self._metrics_folder:
            table = pd.read_parquet(self._metrics_folder / "sample_metrics.parquet", columns=list(METRICS))
            parts.append(table.to_numpy(np.float32)[rows])
            parts += [Activations(self._metrics_folder / f"{name}.parquet").rows(rows) for name in EMBEDDINGS]
        return np.concatenate([part.astype(np.float32) for part in parts], axis=1)
