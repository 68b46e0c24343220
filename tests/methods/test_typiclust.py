"""TypiClust against a case worked by hand and a slow version of its definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from test_methods import InMemory, clusters_of, pick

from coincide.clustering.kmeans import spherical_kmeans
from coincide.methods.typiclust import SMALLEST_CLUSTER, most_typical, turns


def test_the_most_typical_rows_worked_by_hand():
    rows = np.float32([[0.0], [1.0], [3.0], [3.5], [9.0]])
    # k = min(2, 5 // 2) = 2. Means: 0: (1 + 3) / 2, 1: (1 + 2) / 2, 3: (.5 + 2) / 2, 3.5: (.5 + 2.5) / 2, 9: 5.75.
    # Row 2 is first. Of the other four, k = 2: 0: (1 + 3.5) / 2, 1: (1 + 2.5) / 2, 3.5: (2.5 + 3.5) / 2, 9: 6.75.
    # Then of three, k = 1: 0: 3.5, 3.5: 3.5, 9: 5.5, and of two, k = 1, the same distance: the first of them.
    order, typicality = most_typical(rows, 5, 2)
    assert order.tolist() == [2, 1, 0, 3, 4]
    np.testing.assert_allclose(typicality, 1 / (np.array([2, 1.5, 1.25, 1.5, 5.75]) + 1e-5), rtol=1e-6)


def slow_most_typical(rows, count, neighbours):
    rows, left, order = rows.astype(float), list(range(len(rows))), []
    while len(order) < count:
        k = min(neighbours, len(left) // 2)
        means = []
        for i in left:
            distances = sorted(((rows[i] - rows[j]) ** 2).sum() ** 0.5 for j in left if j != i)
            means.append(np.mean(distances[:k]) if k else 0.0)
        order.append(left.pop(int(np.argmin(means))))
    return order


@examples(max_examples=25, deadline=None)
@given(st.integers(1, 90), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_the_most_typical_rows_equal_a_slow_version(n, neighbours, seed):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, 3)).astype(np.float32)
    count = int(rng.integers(0, n + 1))
    assert most_typical(rows, count, neighbours)[0].tolist() == slow_most_typical(rows, count, neighbours)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.floats(0, 1))
def test_clusters_take_turns(sizes, fraction):
    sizes = np.array(sizes)
    count = int(fraction * sizes.sum())
    quotas = turns(sizes, count)
    assert quotas.sum() == count
    assert (quotas <= sizes).all()
    large = sizes >= SMALLEST_CLUSTER
    if quotas[~large].sum():
        assert (quotas[large] == sizes[large]).all()
    for usable in (large, ~large):
        unfinished = quotas[usable][quotas[usable] < sizes[usable]]
        if len(unfinished):
            assert quotas[usable].max() - unfinished.min() <= 1


def test_the_pick_takes_one_sample_of_each_cluster_in_turn():
    rng = np.random.default_rng(0)
    centres = np.eye(4)
    sizes = [30, 20, 10, 8]
    x = np.concatenate([centres[i] + 0.05 * rng.normal(size=(size, 4)) for i, size in enumerate(sizes)])
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    indices, scores = pick("typiclust", InMemory(clusters=clusters_of(68), activations=x), 10, max_clusters=4)
    labels = spherical_kmeans(x, 4, seed=0).labels
    found = np.bincount(labels)
    order = np.argsort(-found, kind="stable")
    assert labels[indices].tolist() == [*order, *order, *order[:2]]
    for cluster in range(4):
        members = np.flatnonzero(labels == cluster)
        chosen = [i for i in indices if labels[i] == cluster]
        assert chosen == members[slow_most_typical(x[members], len(chosen), 20)].tolist()
        assert scores[members].argmax() == np.flatnonzero(members == chosen[0])[0]


def test_fewer_clusters_than_samples_to_keep_are_not_asked_for():
    x = np.eye(9, dtype=np.float32)
    indices, _ = pick("typiclust", InMemory(clusters=clusters_of(9), activations=x), 3)
    assert len(set(indices)) == 3
    with pytest.raises(ValueError, match="max_clusters"):
        pick("typiclust", InMemory(clusters=clusters_of(9), activations=x), 3, max_clusters=0)
