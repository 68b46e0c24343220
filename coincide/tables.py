"""The tables that stages hand on to each other, as DESIGN.md lists their columns."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from coincide.coreset import cluster_stats
from coincide.files import replacing


def write_table(table, path):
    """Write a table as Parquet, whole or not at all."""
    with replacing(path) as part:
        table.to_parquet(part, index=False)


def clusters_table(sample_ids, clustering):
    """sample_id, cluster, similarity."""
    return pd.DataFrame(
        {"sample_id": sample_ids, "cluster": clustering.labels, "similarity": clustering.similarity}
    ).astype({"cluster": "int32", "similarity": "float32"})


def write_centroids(clustering, path):
    """Write cluster, size, centroid (a fixed-size list of float32)."""
    k, d = clustering.centroids.shape
    values = pa.array(np.ascontiguousarray(clustering.centroids, np.float32).ravel())
    table = pa.table(
        {
            "cluster": pa.array(range(k), pa.int32()),
            "size": pa.array(np.bincount(clustering.labels, minlength=k), pa.int64()),
            "centroid": pa.FixedSizeListArray.from_arrays(values, d),
        }
    )
    with replacing(path) as part:
        pq.write_table(table, part)


def read_centroids(path):
    """(K, d) float32 centroids."""
    column = pq.read_table(path, columns=["centroid"])["centroid"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)


def column_table(name, values, clusters=None):
    """cluster, and one value of each; all clusters, or those named."""
    clusters = np.arange(len(values)) if clusters is None else clusters
    return pd.DataFrame({"cluster": np.asarray(clusters, np.int32), name: values})


def read_cluster_stats(centroids, transferability, density, *, temperature, weigh_density=True):
    """cluster, size, transferability, density, share, from the files of the stages; density in one file a group.

    A density that is not weighed counts, and is shown, as 1.
    """
    densities = pd.concat([pd.read_parquet(group) for group in density])["density"].to_numpy()
    return cluster_stats(
        pd.read_parquet(centroids, columns=["size"])["size"],
        pd.read_parquet(transferability)["transferability"].to_numpy(),
        densities if weigh_density else np.ones_like(densities),
        temperature=temperature,
    )


def coreset_table(clusters, indices, scores):
    """sample_id, rank, cluster, score of the picked rows, in their order.

    Args:
        clusters: the clusters table.
        indices: (B,) rows picked.
        scores: (n,) the number that the method ranks by: for coincide transferability / density of
            the sample's cluster.
    """
    return pd.DataFrame(
        {
            "sample_id": clusters["sample_id"].to_numpy()[indices],
            "rank": np.arange(len(indices), dtype=np.int64),
            "cluster": clusters["cluster"].to_numpy()[indices],
            "score": np.asarray(scores, dtype=np.float64)[indices],
        }
    )


def coreset_positions(coreset, manifest):
    """Rows of the dataset that a coreset keeps, ascending: (B,) int64."""
    return np.sort(manifest.loc[manifest["sample_id"].isin(coreset["sample_id"]), "position"].to_numpy())


def of_samples(paths, column, sample_ids):
    """A column of tables of shards, in the order of sample ids: Series; missing where no table has a sample."""
    table = pd.concat([pd.read_parquet(path, columns=["sample_id", column]) for path in paths])
    return table.set_index("sample_id")[column].reindex(sample_ids)


def clip_embeddings(paths, sample_ids):
    """(n, e) float16 CLIP vectors of samples, image and text (see `coincide.clip`), from the tables of all shards."""
    return np.frombuffer(b"".join(of_samples(paths, "embedding", sample_ids)), "<f2").reshape(len(sample_ids), -1)


def write_json(value, path):
    """Write a JSON value, whole or not at all."""
    with replacing(path) as part, open(part, "w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, indent=1)


def write_records(records, path):
    """Write an iterable of records as a JSON list, one at a time; returns how many."""
    count = 0
    with replacing(path) as part, open(part, "w", encoding="utf-8") as file:
        file.write("[")
        for record in records:
            file.write(",\n" if count else "\n")
            json.dump(record, file, ensure_ascii=False, indent=1, default=str)
            count += 1
        file.write("\n]\n")
    return count
