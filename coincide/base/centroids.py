"""The artefact centroids.parquet: cluster, size, centroid."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from coincide.base.files import replacing


def write_centroids(centroids: np.ndarray, labels: np.ndarray, path: str | Path) -> None:
    """Write cluster, size and centroid (a fixed-size list of float32).

    Args:
        centroids: (K, d), one row per cluster.
        labels: (n,) cluster of each sample.
        path: file to write.
    """
    k, d = centroids.shape
    values = pa.array(np.ascontiguousarray(centroids, np.float32).ravel())
    table = pa.table(
        {
            "cluster": pa.array(range(k), pa.int32()),
            "size": pa.array(np.bincount(labels, minlength=k), pa.int64()),
            "centroid": pa.FixedSizeListArray.from_arrays(values, d),
        }
    )
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


def read_centroids(path: str | Path) -> np.ndarray:
    """(K, d) float32 centroids."""
    column = pq.read_table(path, columns=["centroid"])["centroid"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)
