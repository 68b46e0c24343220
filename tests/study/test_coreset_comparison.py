"""Two coresets compared: counts by hand, overlaps of clusterings, and the page."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coincide.base.errors import UserError
from coincide.study.coreset_comparison import as_text, best_overlaps, compare_coresets, write_page


def samples(clusters, sources=None):
    ids = [f"s{i}" for i in range(len(clusters))]
    return pd.DataFrame({"sample_id": ids, "source": sources or ["x"] * len(clusters), "cluster": np.int32(clusters)})


def ids(*numbers):
    return pd.Series([f"s{i}" for i in numbers])


def test_coresets_with_the_same_clusters_by_hand():
    table = samples([0, 0, 0, 1, 1, 1], ["x", "x", "y", "y", "y", "y"])
    comparison = compare_coresets(table, table, {"coincide 0.5": (ids(0, 1, 3), ids(1, 3, 4))})
    assert comparison.is_same_clustering
    assert comparison.coresets.to_dict("records") == [
        {"coreset": "coincide 0.5", "kept_a": 3, "kept_b": 3, "shared": 2, "expected": 1.5, "jaccard": 0.5, "moved": 1}
    ]
    columns = ["source", "samples", "kept_a", "kept_b", "shared", "difference"]
    assert comparison.sources[columns].to_numpy().tolist() == [["x", 2, 2, 1, 1, -1], ["y", 4, 1, 2, 1, 1]]
    columns = ["cluster", "source", "samples", "kept_a", "kept_b", "difference", "nearest_b", "overlap"]
    expected = [[0, "x", 3, 2, 1, -1, 0, 1.0], [1, "y", 3, 1, 2, 1, 1, 1.0]]
    assert comparison.clusters[columns].to_numpy().tolist() == expected
    text = as_text(comparison)
    assert "Both have the same clusters." in text
    assert "| coincide 0.5 | 3 | 3 | 2 | 66.7% | 66.7% | 2 | 1 (33.3%) |" in text
    assert "| 1 | y | 3 | 1 | 2 | +1 |" in text


def test_budgets_of_another_clustering_are_compared_over_the_clusters_of_a():
    first, second = samples([0, 0, 0, 1, 1, 1]), samples([1, 1, 0, 0, 0, 0])
    comparison = compare_coresets(first, second, {"x": (ids(0, 1), ids(3, 4))}, names=("one", "two"))
    assert not comparison.is_same_clustering
    columns = ["cluster", "kept_a", "kept_b", "nearest_b", "overlap"]
    expected = [[0, 2, 0, 1, pytest.approx(2 / 3)], [1, 0, 2, 0, 0.75]]
    assert comparison.clusters[columns].to_numpy().tolist() == expected
    assert comparison.coresets["moved"].tolist() == [2]
    assert "| 0 | x | 3 | 2 | 0 | -2 | 1 (67%) |" in as_text(comparison)
    assert "2 of 2 have at least half" in as_text(comparison)


def test_runs_with_different_samples_share_what_both_have():
    first, second = samples([0, 0, 1]), samples([0, 0, 1, 1]).iloc[1:]
    comparison = compare_coresets(first, second, {"x": (ids(0, 1), ids(1, 3))})
    assert comparison.coresets[["kept_a", "kept_b", "shared"]].to_numpy().tolist() == [[2, 2, 1]]
    assert not comparison.is_same_clustering
    with pytest.raises(UserError, match="no sample in common"):
        compare_coresets(first, samples([0] * 9).iloc[4:], {"x": (ids(0), ids(5))})


def test_equal_coresets_move_nothing():
    table = samples([0, 1, 1])
    comparison = compare_coresets(table, table, {"x": (ids(0, 2), ids(2, 0))})
    assert comparison.coresets[["shared", "jaccard", "moved"]].to_numpy().tolist() == [[2, 1.0, 0]]
    assert "of every cluster of a, both keep the same number" in as_text(comparison)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_overlaps_are_those_of_sets(pairs):
    a, b = (pd.Series(column) for column in zip(*pairs))
    for row in best_overlaps(a, b).itertuples():
        overlaps = {}
        for other in sorted(set(b)):
            in_a, in_b = set(a.index[a == row.cluster]), set(b.index[b == other])
            overlaps[other] = len(in_a & in_b) / len(in_a | in_b)
        assert row.overlap == pytest.approx(max(overlaps.values()))
        assert row.nearest_b == max(overlaps, key=overlaps.get)


def test_counts_of_sources_and_clusters_add_up():
    rng = np.random.default_rng(0)
    first = samples(rng.integers(0, 9, 200), [f"s{i}" for i in rng.integers(0, 4, 200)])
    second = first.assign(cluster=np.int32(rng.integers(0, 9, 200)))
    kept = [ids(*rng.permutation(200)[:count]) for count in (40, 60)]
    comparison = compare_coresets(first, second, {"x": tuple(kept)})
    for table in (comparison.sources, comparison.clusters):
        assert table[["samples", "kept_a", "kept_b"]].sum().tolist() == [200, 40, 60]
        assert table["shared"].sum() == comparison.coresets["shared"][0] == len(set(kept[0]) & set(kept[1]))


def test_the_page_shows_text_of_the_dataset_as_text(tmp_path):
    table = samples([0, 1, 1], ["<script>alert(1)</script>", 'a "b" & c', "x"])
    write_page(compare_coresets(table, table, {"x": (ids(0), ids(1))}), tmp_path / "compare.html")
    page = (tmp_path / "compare.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "a &#34;b&#34; &amp; c" in page
