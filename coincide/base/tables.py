"""Reading and writing the tables that stages exchange (docs/artefacts.md lists their columns)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from coincide.base.errors import UserError
from coincide.base.files import replacing

CLIP_EMBEDDING = "embedding_float32"  # column: float32 bytes; the name differs from that of a former float16 column


def write_table(table: pd.DataFrame, path: Path | str) -> None:
    """Write a table as Parquet, atomically."""
    with replacing(path) as temporary:
        table.to_parquet(temporary, index=False)


def cluster_table(column: str, values: Sequence | NDArray, clusters: ArrayLike | None = None) -> pd.DataFrame:
    """Table of cluster and a column with one value per cluster; `clusters` defaults to 0..K-1."""
    clusters = np.arange(len(values)) if clusters is None else clusters
    return pd.DataFrame({"cluster": np.asarray(clusters, np.int32), column: values})


def coreset_table(clusters: pd.DataFrame, indices: NDArray, scores: ArrayLike) -> pd.DataFrame:
    """Table of sample_id, rank, cluster and score of the selected rows, in their order.

    Args:
        clusters: table with columns sample_id and cluster, one row per sample.
        indices: (B,) selected rows.
        scores: (n,) numbers that the method ranks by; for coincide, transferability / density of each
            sample's cluster.
    """
    return pd.DataFrame(
        {
            "sample_id": clusters["sample_id"].to_numpy()[indices],
            "rank": np.arange(len(indices), dtype=np.int64),
            "cluster": clusters["cluster"].array.take(indices),  # a null is not converted to NaN
            "score": np.asarray(scores, dtype=np.float64)[indices],
        }
    )


def coreset_rows(coreset: pd.DataFrame, manifest: pd.DataFrame) -> pd.DataFrame:
    """The sample_id and position of the samples that a coreset keeps, in the order of the dataset."""
    return manifest[manifest["sample_id"].isin(coreset["sample_id"])].sort_values("position")


def read_column(paths: Iterable[Path | str], column: str, sample_ids: Sequence | pd.Series) -> pd.Series:
    """A column of several tables, in the order of the sample ids; a sample that no table contains is missing.

    Raises:
        UserError: a table does not have the column.
    """
    paths = list(paths)
    for path in paths:
        if column not in pq.read_schema(path).names:
            raise UserError(f"{path} has no column {column!r}, as written by another version: delete it and rerun")
    table = pd.concat([pd.read_parquet(path, columns=["sample_id", column]) for path in paths])
    return table.set_index("sample_id")[column].reindex(sample_ids)


def read_clip_embeddings(paths: Iterable[Path | str], sample_ids: Sequence | pd.Series) -> NDArray[np.float32]:
    """(n, e) CLIP embeddings (see `coincide.extraction.clip`) from the tables of all shards."""
    column = read_column(paths, CLIP_EMBEDDING, sample_ids)
    return np.frombuffer(b"".join(column), "<f4").reshape(len(sample_ids), -1)


def write_records(records: Iterable[dict], path: Path | str) -> int:
    """Write records as a JSON list, one at a time and atomically; returns their number."""
    count = 0
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write("[")
        for record in records:
            file.write(",\n" if count else "\n")
            json.dump(record, file, ensure_ascii=False, indent=1)
            count += 1
        file.write("\n]\n")
    return count
