"""Members of clusters, and functions evaluated per cluster on threads and in batches."""

import numpy as np
import pytest

from coincide.base import clustered_rows
from coincide.base.activation_store import Activations, write_activations
from coincide.base.clustered_rows import ClusteredRows, members_by_cluster

BATCHED = "cpu:0"  # a torch device like a GPU: clusters in batches


class MeanRow:
    """Mean row of a cluster; a batch holds at most `limit` rows, padding included."""

    def __init__(self, limit):
        self.limit, self.batches = limit, []

    def __call__(self, cluster, rows):
        return rows.mean(axis=0)

    def fits(self, n_clusters, n_members, dimension):
        return n_clusters * n_members <= self.limit

    def batch(self, clusters, rows, positions, device):
        self.batches.append(clusters)
        return [rows[p].mean(axis=0) for p in positions]


@pytest.fixture(params=["memory", "disk"])
def example(request, tmp_path):
    """(rows in memory or on disk, the same rows as an array, labels of 9 clusters of which cluster 4 is empty)."""
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(200, 5)).astype(np.float16), rng.integers(0, 9, 200)
    labels[labels == 4] = 5
    if request.param == "memory":
        return x, x, labels
    write_activations(
        tmp_path / "rows.parquet",
        [([str(i) for i in range(start, start + 50)], x[start : start + 50]) for start in range(0, 200, 50)],
        dimension=5,
        metadata={},
    )
    return Activations(tmp_path / "rows.parquet"), x, labels


@pytest.mark.parametrize("bytes_at_once", [1, 500, 2**28])
@pytest.mark.parametrize("large", [10, 2048])
def test_map_on_threads_keeps_the_order_of_the_clusters(example, monkeypatch, bytes_at_once, large):
    monkeypatch.setattr(clustered_rows, "BYTES_AT_ONCE", bytes_at_once)
    monkeypatch.setattr(clustered_rows, "LARGE", large)
    data, x, labels = example
    clusters = [7, 0, 3, 8, 5]
    results = ClusteredRows(data, labels).map(lambda cluster, rows: (cluster, rows.tolist()), clusters)
    assert results == [(c, x[labels == c].tolist()) for c in clusters]


@pytest.mark.parametrize("limit", [1, 60, 10_000])
def test_map_in_batches_gives_the_same_as_on_threads(example, limit):
    data, x, labels = example
    clustered, clusters, function = ClusteredRows(data, labels), [7, 0, 3, 8, 5], MeanRow(limit)
    expected = [x[labels == c].mean(axis=0).tolist() for c in clusters]
    assert [row.tolist() for row in clustered.map(function, clusters)] == expected
    assert [row.tolist() for row in clustered.map(function, clusters, device=BATCHED)] == expected
    batched = [c for batch in function.batches for c in batch]
    assert batched == ([] if limit == 1 else sorted(clusters, key=lambda c: -clustered.sizes[c]))
    assert all(len(b) * clustered.sizes[b].max() <= limit for b in function.batches)


def test_members_and_sizes(example):
    data, _, labels = example
    clustered = ClusteredRows(data, labels, 11)
    assert len(clustered) == 11
    assert clustered.sizes.tolist() == np.bincount(labels, minlength=11).tolist()
    for cluster, members in enumerate(clustered.members):
        assert members.tolist() == np.flatnonzero(labels == cluster).tolist()


def test_groups_hold_every_cluster_once(example):
    data, _, labels = example
    clustered = ClusteredRows(data, labels)
    for count in (1, 2, 5, 20):
        groups = [clustered.group(index, count).tolist() for index in range(count)]
        assert [cluster for group in groups for cluster in group] == list(range(9))


def test_invalid_labels_are_refused():
    with pytest.raises(ValueError, match=r"labels has shape \(2,\), x has 3 rows"):
        ClusteredRows(np.eye(3), [0, 1])
    with pytest.raises(ValueError, match=r"integers in 0\.\.1"):
        ClusteredRows(np.eye(3), [0, 1, 2], 2)
    with pytest.raises(ValueError, match="labels must be a vector"):
        members_by_cluster([-1, 0])
