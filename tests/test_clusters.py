"""Spherical k-means against a plain one, and its edge cases."""

from itertools import pairwise

import numpy as np
import pytest

import coincide
from coincide.clusters import assign
from coincide.rows import Rows


def blobs(n=300, k=6, d=8, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(k, d)) * 3
    truth = rng.integers(0, k, n)
    return (centres[truth] + rng.normal(size=(n, d)) * 0.1).astype(np.float32), truth


def test_finds_separate_groups_and_keeps_its_promises():
    x, truth = blobs()
    best = max((coincide.spherical_kmeans(x, 6, seed=s) for s in range(20)), key=lambda c: c.similarity.mean())
    pairs = {(int(a), int(b)) for a, b in zip(truth, best.labels)}
    assert len(pairs) == 6
    np.testing.assert_allclose(np.linalg.norm(best.centroids, axis=1), 1, atol=1e-5)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    scores = unit @ best.centroids.T
    assert (scores.argmax(axis=1) == best.labels).all()
    np.testing.assert_allclose(scores.max(axis=1), best.similarity, atol=1e-5)


def test_objective_is_that_of_a_plain_version():
    x, _ = blobs(seed=3)
    x = np.random.default_rng(0).normal(size=(400, 10)).astype(np.float32)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    seeds = np.sort(np.random.default_rng(0).choice(len(x), size=8, replace=False))
    centroids = unit[seeds]
    for _ in range(50):  # assign to the largest dot product, normalise the sums
        labels = (unit @ centroids.T).argmax(axis=1)
        centroids = np.stack([unit[labels == c].sum(axis=0) for c in range(8)])
        centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    plain = (unit @ centroids.T).max(axis=1).mean()
    ours = coincide.spherical_kmeans(x, 8, seed=0).similarity.mean()
    assert ours == pytest.approx(plain, rel=1e-3)


def test_same_seed_same_result_also_from_blocks():
    x, _ = blobs()
    a = coincide.spherical_kmeans(x.astype(np.float16), 10, seed=4)
    b = coincide.spherical_kmeans(iter(np.array_split(x.astype(np.float16), 7)), 10, seed=4)
    assert a.labels.tolist() == b.labels.tolist()
    assert a.centroids.tobytes() == b.centroids.tobytes()


def test_no_cluster_is_empty_and_fewer_distinct_rows_are_reported():
    x = np.repeat(np.eye(5, dtype=np.float32), 4, axis=0)
    with pytest.warns(UserWarning, match="3 of 8 clusters are empty"):
        clustering = coincide.spherical_kmeans(x, 8)
    assert sorted(np.bincount(clustering.labels).tolist()) == [4] * 5
    assert len(clustering.centroids) == 5
    x, _ = blobs(n=60)
    assert (np.bincount(coincide.spherical_kmeans(x, 50).labels, minlength=50) > 0).all()


def test_k_of_one_and_of_n():
    x, _ = blobs(n=30)
    assert set(coincide.spherical_kmeans(x, 1).labels.tolist()) == {0}
    assert sorted(coincide.spherical_kmeans(x, 30).labels.tolist()) == list(range(30))


def test_from_disk_a_block_at_a_time_is_as_good_as_in_memory(tmp_path, monkeypatch):
    from coincide import clusters
    from coincide.storage import Activations, write_activations

    x = np.random.default_rng(1).normal(size=(500, 12)).astype(np.float16)
    blocks = (([str(i) for i in range(s, s + 100)], x[s : s + 100]) for s in range(0, 500, 100))
    write_activations(tmp_path / "a.parquet", blocks, dimension=12, metadata={"hidden_size": 6})
    stored = Activations(tmp_path / "a.parquet")
    streamed = coincide.spherical_kmeans(stored, 20, backend="stream")
    in_memory = coincide.spherical_kmeans(x, 20, backend="stream")
    faiss = coincide.spherical_kmeans(x, 20, backend="faiss")
    assert streamed.labels.tolist() == in_memory.labels.tolist()
    assert streamed.similarity.mean() == pytest.approx(faiss.similarity.mean(), rel=5e-3)
    monkeypatch.setattr(clusters, "ROWS_PER_BLOCK", 37)  # where blocks begin does not matter
    assert coincide.spherical_kmeans(x, 20, backend="stream").labels.tolist() == streamed.labels.tolist()
    whole = coincide.select(x, streamed.labels, streamed.centroids, fraction=0.3)
    assert (
        coincide.select(stored, streamed.labels, streamed.centroids, fraction=0.3).indices.tolist()
        == whole.indices.tolist()
    )


def test_the_streamed_objective_rises_until_it_stalls(caplog):
    x, _ = blobs(n=400, k=5, seed=2)
    with caplog.at_level("INFO", "coincide.clusters"):
        coincide.spherical_kmeans(x, 8, backend="stream", iterations=100)
    trace = [record.args[1] for record in caplog.records if "mean similarity" in record.msg]
    assert 1 < len(trace) < 100
    assert all(after >= before - 1e-6 for before, after in pairwise(trace))
    assert "the objective stalls" in caplog.text


def test_the_stream_re_seeds_empty_clusters_as_it_goes():
    x = np.repeat(np.eye(6, dtype=np.float32), 30, axis=0) + np.random.default_rng(0).normal(size=(180, 6)) * 1e-2
    x = np.concatenate([x, np.repeat(x[:1], 300, axis=0)]).astype(np.float32)  # most seeds are one and the same row
    clustering = coincide.spherical_kmeans(x, 30, backend="stream")
    assert (np.bincount(clustering.labels, minlength=30) > 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k must be"),
        ({"k": 31}, "k must be"),
        ({"k": 2, "backend": "x"}, "backend"),
        ({"k": 2, "iterations": 0}, "iterations"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        coincide.spherical_kmeans(blobs(n=30)[0], **arguments)


def test_refuses_nan_and_names_the_missing_package():
    with pytest.raises(ValueError, match="row 1"):
        coincide.spherical_kmeans(np.array([[1.0, 0], [np.nan, 1]], np.float32), 1)
    pytest.importorskip("faiss")
    try:
        import cuml  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="needs the packages cuml and cupy"):
            coincide.spherical_kmeans(np.eye(3, dtype=np.float32), 2, backend="cuml")


def test_ties_go_to_the_lowest_cluster():
    labels, similarity = assign(Rows(np.eye(2, dtype=np.float32)), np.array([[1, 0], [1, 0], [0, 1]], np.float32))
    assert labels.tolist() == [0, 2]
    assert similarity.tolist() == [1, 1]
