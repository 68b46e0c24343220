"""VisNec against a case worked by hand and a slow version of its definition."""

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from test_methods import InMemory, clusters_of, pick

from coincide.clustering.kmeans import spherical_kmeans


def test_visnec_worked_by_hand():
    # two kinds of questions, and two samples without an image
    questions = np.float32([[1, 0]] * 4 + [[0, 1]] * 4 + [[1, 0], [0, 1]])
    necessity = np.array([0.1, 0.9, -0.5, 0.3, 5.0, 7.0, 6.0, 8.0, np.nan, np.nan])
    metrics = pd.DataFrame({"visual_necessity": necessity})
    inputs = InMemory(clusters=clusters_of(10), sample_metrics=metrics, question=questions)
    indices, scores = pick("visnec", inputs, 5, k=2)
    assert set(indices[:1]) < {8, 9}  # 5 / 10 of two samples
    assert sorted(indices[1:]) == [1, 3, 5, 7]  # the highest two of each four, though 6.0 is higher than 0.3
    np.testing.assert_array_equal(scores, necessity)


def slow_visnec(necessity, labels, count):
    """Rows of each cluster; the text-only samples, which are drawn, are returned as their number."""
    n, groups = len(necessity), sorted(set(labels))
    shares = {group: count * sum(labels == group) / n for group in groups}
    quotas = {group: int(share + 1e-9) for group, share in shares.items()}
    while sum(quotas.values()) < count:
        behind = max(groups, key=lambda group: (round(shares[group] - quotas[group], 9), -group))
        quotas[behind] += 1
    rows = []
    for group in groups:
        members = [i for i in range(n) if labels[i] == group]
        if group >= 0:
            rows += sorted(members, key=lambda i: (-necessity[i], i))[: quotas[group]]
    return rows, quotas.get(-1, 0)


@examples(max_examples=40, deadline=None)
@given(st.integers(25, 80), st.floats(0.05, 1), st.integers(0, 2**32 - 1))
def test_visnec_equals_a_slow_version(n, fraction, seed):
    rng = np.random.default_rng(seed)
    necessity = rng.normal(size=n).round(1)
    necessity[rng.random(n) < 0.3] = np.nan
    questions = rng.normal(size=(n, 4)).astype(np.float32)
    count = max(1, int(fraction * n))
    inputs = InMemory(
        clusters=clusters_of(n), sample_metrics=pd.DataFrame({"visual_necessity": necessity}), question=questions
    )
    indices, _ = pick("visnec", inputs, count, seed=3, k=5)
    with_image = np.flatnonzero(~np.isnan(necessity))
    labels = np.full(n, -1)
    labels[with_image] = spherical_kmeans(questions[with_image], min(5, len(with_image)), seed=3).labels
    rows, text_only = slow_visnec(necessity, labels, count)
    assert [i for i in indices if labels[i] >= 0] == rows
    assert sum(labels[indices] == -1) == text_only


def test_the_text_only_samples_depend_on_the_seed():
    n = 100
    necessity = np.where(np.arange(n) < 50, np.nan, 1.0)
    inputs = InMemory(
        clusters=clusters_of(n),
        sample_metrics=pd.DataFrame({"visual_necessity": necessity}),
        question=np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32),
    )
    drawn = [{i for i in pick("visnec", inputs, 20, seed=seed)[0] if i < 50} for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 10
