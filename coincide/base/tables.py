"""The tables that stages hand on to each other, as DESIGN.md lists their columns."""

import json

import numpy as np
import pandas as pd

from coincide.base.files import replacing


def write_table(table, path):
    """Write a table as Parquet, whole or not at all."""
    with replacing(path) as part:
        table.to_parquet(part, index=False)


def column_table(name, values, clusters=None):
    """cluster, and one value of each; all clusters, or those named."""
    clusters = np.arange(len(values)) if clusters is None else clusters
    return pd.DataFrame({"cluster": np.asarray(clusters, np.int32), name: values})


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
    """(n, e) float16 CLIP vectors of samples (see `coincide.extraction.clip`), from the tables of all shards."""
    return np.frombuffer(b"".join(of_samples(paths, "embedding", sample_ids)), "<f2").reshape(len(sample_ids), -1)


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
