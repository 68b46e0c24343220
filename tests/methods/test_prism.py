"""PRISM against a case worked by hand and a slow version of its definition."""

import numpy as np
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from test_methods import InMemory, clusters_of, pick

from coincide.methods.prism import redundancy


def test_prism_worked_by_hand():
    # The mean of the rows with an image is (10, 10). Without it: (1, 0), (1, 0), (-2, 0), (0, 1), (0, -1).
    # Mean cosines: (1 - 1 + 0 + 0) / 4 = 0 twice, (-1 - 1 + 0 + 0) / 4 = -0.5, and (0 + 0 + 0 - 1) / 4 = -0.25 twice.
    vision = np.float32([[11, 10], [11, 10], [8, 10], [0, 0], [10, 11], [10, 9]])
    inputs = InMemory(clusters=clusters_of(6), vision=vision)
    indices, scores = pick("prism", inputs, 3)
    np.testing.assert_allclose(scores, [0, 0, 0.5, np.nan, 0.25, 0.25], atol=1e-6)
    assert indices[:2] == [2, 4]
    assert indices[2] == 5  # 3 * 5 / 6 rows with an image, rounded: the larger remainder
    assert pick("prism", inputs, 6)[0][-1] == 3


def slow_redundancy(features):
    centred = features.astype(float) - features.astype(float).mean(axis=0)
    n, result = len(features), []
    for i in range(n):
        correlations = [
            centred[i] @ centred[j] / np.linalg.norm(centred[i]) / np.linalg.norm(centred[j])
            for j in range(n)
            if j != i
        ]
        result.append(np.mean(correlations))
    return result


@examples(max_examples=30, deadline=None)
@given(st.integers(3, 40), st.integers(0, 2**32 - 1))
def test_redundancy_equals_the_mean_of_all_pairs(n, seed):
    rng = np.random.default_rng(seed)
    features = (rng.normal(size=(n, 6)) + 5 * rng.normal(size=6)).astype(np.float32)
    np.testing.assert_allclose(redundancy(features), slow_redundancy(features), atol=1e-9)
    count = int(rng.integers(1, n))
    indices, _ = pick("prism", InMemory(clusters=clusters_of(n), vision=features), count)
    assert indices == np.argsort(slow_redundancy(features), kind="stable")[:count].tolist()


def test_a_shift_of_all_features_changes_nothing():
    features = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    np.testing.assert_allclose(redundancy(features + np.float32(3)), redundancy(features), atol=1e-5)
