"""The steps from clusters to a coreset, against a slow and obvious version of the published formulas."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import coincide
from coincide.base.clustered_rows import ClusteredRows
from coincide.selection import kernel_gpu
from coincide.selection.budget import effective_clusters, premise_weight, spread_text, total_budget
from coincide.selection.density import cluster_densities
from coincide.selection.picks import pick_members, rank_picks
from coincide.selection.select import budget_table, shares_table

BATCHED = "cpu:0"  # a torch device like a GPU: clusters in batches

# --- the slow and obvious version -----------------------------------------------------------------


def slow_kernel(a, b, gamma):
    return math.exp(-sum((float(p) - float(q)) ** 2 for p, q in zip(a, b)) / (2 * gamma**2))


def slow_transferability(centroids, exclude_above):
    result = []
    for i, a in enumerate(centroids):
        cosines = []
        for j, b in enumerate(centroids):
            if i != j:
                cosine = float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))
                if cosine <= exclude_above:
                    cosines.append(cosine)
        result.append(sum(cosines) / len(cosines) if cosines else exclude_above)
    return result


def slow_density(members, gamma):
    pairs = [slow_kernel(a, b, gamma) for a in members for b in members]
    return sum(pairs) / len(pairs)


def slow_allocate(scores, sizes, budget, temperature):
    """One pass from the largest share to the smallest; the softmax is recomputed over the clusters not yet visited."""
    budgets = [0] * len(scores)
    remaining = budget
    waiting = sorted((i for i in range(len(scores)) if sizes[i]), key=lambda i: (-scores[i], i))
    while waiting:
        top = max(scores[i] for i in waiting)
        weights = [math.exp((scores[i] - top) / temperature) for i in waiting]
        i = waiting.pop(0)
        budgets[i] = min(round(remaining * weights[0] / sum(weights)), sizes[i])
        remaining -= budgets[i]
    return budgets


def slow_mmd(picks, members, gamma):
    within = [slow_kernel(members[a], members[b], gamma) for a in picks for b in picks]
    across = [slow_kernel(members[a], c, gamma) for a in picks for c in members]
    whole = [slow_kernel(a, b, gamma) for a in members for b in members]
    return sum(within) / len(within) - 2 * sum(across) / len(across) + sum(whole) / len(whole)


def slow_picks(members, m, gamma):
    """Re-evaluate every candidate set at each pick."""
    picks = []
    for _ in range(m):
        values = {i: slow_mmd([*picks, i], members, gamma) for i in range(len(members)) if i not in picks}
        smallest = min(values.values())
        picks.append(min(i for i, value in values.items() if value <= smallest + 1e-12))
    return picks


# --- picks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("gamma", [0.3, 1.0])
def test_picks_equal_the_slow_version(seed, gamma):
    rng = np.random.default_rng(seed)
    members = rng.normal(size=(int(rng.integers(2, 16)), 4)).astype(np.float32) * 0.5
    members[rng.integers(0, len(members), len(members) // 3)] = members[0]  # duplicates
    m = int(rng.integers(0, len(members) + 1))
    assert coincide.greedy_mmd(members, m, gamma=gamma).tolist() == slow_picks(members, m, gamma)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_picks_of_a_cluster_too_large_for_its_kernel_are_the_same(monkeypatch, dtype):
    x = np.random.default_rng(0).normal(size=(150, 8)).astype(dtype)
    x[100:120] = x[0]
    whole = coincide.greedy_mmd(x, 60)
    monkeypatch.setattr("coincide.selection.kernel.WHOLE", 10)
    monkeypatch.setattr("coincide.selection.kernel.ROWS_PER_BLOCK", 32)
    assert coincide.greedy_mmd(x, 60).tolist() == whole.tolist()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.sampled_from([0.1, 0.5, 1.0]))
def test_permuting_the_rows_permutes_the_picks(seed, clusters, fraction):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(60, 5)).astype(np.float16)  # distinct rows, clusters of three or more: no ties
    labels = np.concatenate([np.repeat(np.arange(clusters), 3), rng.integers(0, clusters, 60 - 3 * clusters)])
    centroids = rng.normal(size=(clusters, 5))
    order = rng.permutation(60)
    picks = coincide.select(x, labels, centroids, fraction=fraction).indices
    moved = coincide.select(x[order], labels[order], centroids, fraction=fraction).indices
    assert len(set(picks.tolist())) == len(picks) == int(fraction * 60)
    assert order[moved].tolist() == picks.tolist()


def test_groups_of_clusters_give_the_same_as_all_at_once():
    rng = np.random.default_rng(2)
    x, labels = rng.normal(size=(300, 6)).astype(np.float16), rng.integers(0, 25, 300)
    whole = coincide.select(x, labels, rng.normal(size=(25, 6)), fraction=0.4)
    clustered = ClusteredRows(x, labels)
    for count in (1, 3, 40):
        groups = [clustered.group(index, count) for index in range(count)]
        assert np.concatenate(groups).tolist() == list(range(25))
        densities = np.concatenate([coincide.density(x, labels, clusters=group) for group in groups])
        assert densities.tolist() == whole.cluster_stats["density"].tolist()
        picks = [pick_members(clustered, whole.cluster_stats, clusters=group) for group in groups]
        assert rank_picks(np.concatenate(picks), labels, whole.cluster_stats).tolist() == whole.indices.tolist()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.sampled_from([0.1, 0.5, 1.0]))
def test_batches_of_clusters_give_the_same_as_each_cluster_separately(seed, k, fraction):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(80, 6)) / 4 + 1).astype(np.float16)
    labels = rng.integers(0, k, len(x))
    x[labels == 0] = x[0]  # copies: ties
    clustered = ClusteredRows(x, labels, k)
    budgets = np.array([round(fraction * size) for size in clustered.sizes])
    stats = pd.DataFrame({"share": -np.arange(k), "budget": budgets})  # picks in the order of the clusters
    members = [m for m, b in zip(clustered.members, budgets) if b]
    expected = [m[coincide.greedy_mmd(x[m], b)] for m, b in zip(members, budgets[budgets > 0])]
    expected = np.concatenate([np.empty(0, int), *expected])
    limits = (kernel_gpu.BATCH_BYTES, kernel_gpu.cluster_bytes(30, 6), 1)  # one batch, several, none
    for limit in limits:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(kernel_gpu, "BATCH_BYTES", limit)
            assert pick_members(clustered, stats, device=BATCHED).tolist() == expected.tolist()
            densities = cluster_densities(clustered, device=BATCHED)
        separate = coincide.density(x, labels)
        np.testing.assert_allclose(densities[: len(separate)], separate, rtol=1e-12)
        assert np.isnan(densities[len(separate) :]).all()


def test_random_draws_keep_the_budgets():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(200, 4)).astype(np.float32), rng.integers(0, 7, 200)
    stats = coincide.select(x, labels, rng.normal(size=(7, 4)), fraction=0.3, temperature=9.0).cluster_stats
    clustered = ClusteredRows(x, labels)
    drawn = pick_members(clustered, stats, within="random", seed=3)
    assert np.bincount(labels[drawn], minlength=7).tolist() == stats["budget"].tolist()
    assert len(set(drawn.tolist())) == 60
    groups = [clustered.group(index, 3) for index in range(3)]
    of_groups = [pick_members(clustered, stats, within="random", seed=3, clusters=group) for group in groups]
    assert sorted(np.concatenate(of_groups)) == sorted(drawn)  # independent of how clusters are divided among jobs
    assert sorted(pick_members(clustered, stats, within="random", seed=4)) != sorted(drawn)


def test_picks_of_degenerate_clusters():
    single = np.ones((1, 3), np.float16)
    assert coincide.greedy_mmd(single, 1).tolist() == [0]
    assert coincide.greedy_mmd(single, 0).tolist() == []
    equal = np.repeat(single, 5, axis=0)
    assert coincide.greedy_mmd(equal, 3).tolist() == [0, 1, 2]  # ties: the lowest position
    assert sorted(coincide.greedy_mmd(np.eye(4), 4).tolist()) == [0, 1, 2, 3]


def test_picks_worked_by_hand():
    # Three points on a line: the middle one represents all; then both ends are tied, the lower position wins.
    assert coincide.greedy_mmd(np.array([[0.0], [1.0], [2.0]]), 3).tolist() == [1, 0, 2]


@pytest.mark.parametrize("m", [-1, 4])
def test_picks_refuse_a_budget_outside_the_cluster(m):
    with pytest.raises(ValueError, match=r"m must be in 0\.\.3"):
        coincide.greedy_mmd(np.eye(3), m)


def test_picks_refuse_nan():
    with pytest.raises(ValueError, match="first is row 1"):
        coincide.greedy_mmd(np.array([[0.0], [np.nan]]), 1)


# --- transferability and density --------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_transferability_equals_the_slow_version(seed):
    centroids = np.random.default_rng(seed).normal(size=(30, 3))  # few dimensions: some pairs above 0.9
    fast = coincide.transferability(centroids, exclude_above=0.9)
    np.testing.assert_allclose(fast, slow_transferability(centroids, 0.9), rtol=1e-12)


def test_transferability_over_blocks_of_columns():
    centroids = np.random.default_rng(0).normal(size=(10, 6))
    expected = slow_transferability(centroids[:, 2:4], 0.9)
    mask = np.array([False, False, True, True, False, False])
    np.testing.assert_allclose(coincide.transferability(centroids, blocks=mask), expected)
    np.testing.assert_allclose(coincide.transferability(centroids, blocks=[slice(2, 4)]), expected)


def test_transferability_in_many_blocks_of_rows(monkeypatch):
    import sys

    centroids = np.random.default_rng(1).normal(size=(50, 5))
    whole = coincide.transferability(centroids)
    monkeypatch.setattr(sys.modules["coincide.selection.transferability"], "ROWS_PER_BLOCK", 7)
    np.testing.assert_allclose(coincide.transferability(centroids), whole, rtol=1e-14)


def test_transferability_where_all_others_are_copies():
    assert coincide.transferability(np.ones((3, 2))).tolist() == [0.9, 0.9, 0.9]
    assert coincide.transferability(np.ones((1, 2))).tolist() == [0.9]


def test_density_equals_the_slow_version(monkeypatch):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(40, 5)).astype(np.float16)
    labels = rng.integers(0, 4, 40)
    labels[labels == 2] = 3  # an empty cluster
    slow = [slow_density(x[labels == c], 0.8) if (labels == c).any() else np.nan for c in range(4)]
    np.testing.assert_allclose(coincide.density(x, labels, gamma=0.8), slow, rtol=1e-12)
    assert coincide.density(x, labels, gamma=0.8, clusters=[3, 0]).tolist() == pytest.approx([slow[3], slow[0]])
    monkeypatch.setattr("coincide.selection.kernel.WHOLE", 3)  # a kernel in blocks
    monkeypatch.setattr("coincide.selection.kernel.ROWS_PER_BLOCK", 3)
    np.testing.assert_allclose(coincide.density(x, labels, gamma=0.8), slow, rtol=1e-12)


def test_density_does_not_suffer_from_a_large_common_mean():
    x = np.random.default_rng(0).normal(size=(20, 3)) * 1e-3
    np.testing.assert_allclose(
        coincide.density(x + 100.0, np.zeros(20, int), gamma=1e-3),
        coincide.density(x, np.zeros(20, int), gamma=1e-3),
        rtol=1e-8,
    )


# --- budgets ----------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-2, 2), st.integers(0, 30)), min_size=1, max_size=12),
    st.integers(0, 250),
    st.sampled_from([0.05, 0.1, 1.0]),
)
def test_budgets_equal_the_published_procedure_and_add_up(clusters, budget, temperature):
    scores, sizes = map(list, zip(*clusters))
    budgets = coincide.allocate(scores, sizes, budget, temperature=temperature)
    assert budgets.sum() == min(budget, sum(sizes))
    assert ((budgets >= 0) & (budgets <= sizes)).all()
    published = slow_allocate(scores, sizes, min(budget, sum(sizes)), temperature)
    if sum(published) == budgets.sum():  # the published procedure does not always meet the budget
        assert budgets.tolist() == published


def test_budgets_worked_by_hand():
    # Equal scores: round(5 · 1/2) = 2 by half-to-even; the second cluster gets the remainder.
    assert coincide.allocate([1.0, 1.0], [10, 10], 5).tolist() == [2, 3]
    # The first cluster would get nearly all, but has 3; the rest is divided equally.
    assert coincide.allocate([5.0, 1.0, 1.0], [3, 10, 10], 7).tolist() == [3, 2, 2]
    # The last cluster is too small: the remainder goes to the clusters with members left.
    assert coincide.allocate([1.0, 0.9], [10, 1], 8).tolist() == [7, 1]


def test_budgets_with_scores_that_differ_by_a_hundred_orders():
    assert coincide.allocate([100.0, 0.0, -100.0], [5, 5, 5], 12, temperature=0.1).tolist() == [5, 5, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], [1, 2], 1), "equal length"),
        (([1.0], [1], -1), "negative"),
        (([np.inf, 0.0], [1, 1], 1), "cluster 0"),
    ],
)
def test_budgets_refuse(arguments, message):
    with pytest.raises(ValueError, match=message):
        coincide.allocate(*arguments)
    with pytest.raises(ValueError, match="temperature"):
        coincide.allocate([1.0], [1], 1, temperature=0)


@pytest.mark.parametrize(
    ("fraction", "n", "expected"), [(0.29, 100, 29), (0.07, 100, 7), (0.2, 21000, 4200), (0.167, 10, 1), (1, 7, 7)]
)
def test_total_budget_is_exact_in_decimals(fraction, n, expected):
    assert total_budget(fraction, n) == expected


# --- the selection as a whole -------------------------------------------------------------------------


def example(seed, n=80, d=6, k=7):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    clustering = coincide.spherical_kmeans(x, k, seed=seed)
    return x, clustering.labels, clustering.centroids


@pytest.mark.parametrize("seed", range(3))
def test_selection_equals_the_slow_version(seed):
    x, labels, centroids = example(seed)
    k = len(centroids)
    transferabilities = slow_transferability(centroids, 0.9)
    densities = [slow_density(x[labels == c], 1.0) for c in range(k)]
    scores = [t / d for t, d in zip(transferabilities, densities)]
    budgets = slow_allocate(scores, np.bincount(labels).tolist(), 16, 0.1)
    expected = []
    for c in sorted(range(k), key=lambda c: (-scores[c], c)):
        members = np.flatnonzero(labels == c)
        expected += members[slow_picks(x[members], budgets[c], 1.0)].tolist()
    coreset = coincide.select(x, labels, centroids, fraction=0.2)
    assert sum(budgets) == 16
    assert coreset.cluster_stats["budget"].tolist() == budgets
    assert coreset.indices.tolist() == expected
    np.testing.assert_allclose(coreset.cluster_stats["share"].sum(), 1)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 1.0))
def test_selection_keeps_the_fraction_and_no_row_twice(seed, fraction):
    x, labels, centroids = example(seed)
    indices = coincide.select(x, labels, centroids, fraction=fraction).indices
    assert len(indices) == total_budget(fraction, len(x))
    assert len(set(indices.tolist())) == len(indices)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_the_order_of_the_rows_does_not_matter(seed):
    x, labels, centroids = example(seed)
    order = np.random.default_rng(seed).permutation(len(x))
    straight = coincide.select(x, labels, centroids, fraction=0.3).indices
    shuffled = coincide.select(x[order], labels[order], centroids, fraction=0.3).indices
    assert set(order[shuffled].tolist()) == set(straight.tolist())


def test_selection_takes_row_blocks_and_an_empty_last_cluster():
    x, labels, centroids = example(0)
    whole = coincide.select(x, labels, centroids, fraction=0.2).indices
    blocks = coincide.select((x[i : i + 9] for i in range(0, len(x), 9)), labels, centroids, fraction=0.2)
    assert blocks.indices.tolist() == whole.tolist()
    more = np.concatenate([centroids, -centroids[:1]])
    stats = coincide.select(x, labels, more, fraction=0.2).cluster_stats
    assert stats["budget"].iloc[-1] == 0
    assert stats["share"].iloc[-1] == 0


@pytest.mark.parametrize("fraction", [0, -0.1, 1.5])
def test_selection_refuses_a_fraction_outside(fraction):
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\]"):
        coincide.select(*example(0), fraction=fraction)


def table_of_clusters(sizes, scores):
    return shares_table(np.array(sizes), np.array(scores, float), np.ones(len(sizes)))


def test_kinds_of_budget_by_hand():
    stats = table_of_clusters([10, 30, 60], [0.1, 0.2, 0.1])
    even = shares_table(stats["size"], stats["transferability"], stats["density"], budget="even")
    assert even["share"].tolist() == pytest.approx([1 / 3] * 3)
    by_size = shares_table(stats["size"], stats["transferability"], stats["density"], budget="size")
    assert by_size["share"].tolist() == pytest.approx([0.1, 0.3, 0.6])
    assert budget_table(even, 0.3)["budget"].tolist() == [10, 10, 10]
    assert budget_table(by_size, 0.2)["budget"].tolist() == [2, 6, 12]
    published = np.exp([1, 2, 1]) / np.exp([1, 2, 1]).sum()
    assert stats["share"].tolist() == pytest.approx(published.tolist())


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.floats(0.05, 1),
    st.sampled_from(["published", "premise", "even", "size"]),
)
def test_every_kind_of_budget_is_met_and_fits_the_clusters(sizes, fraction, kind):
    scores = np.linspace(-0.5, 0.9, len(sizes))
    stats = shares_table(sizes, scores, np.ones(len(sizes)), budget=kind, premise_weight=0.3)
    budgets = budget_table(stats, fraction)["budget"]
    assert budgets.sum() == total_budget(fraction, sum(sizes))
    assert (budgets <= stats["size"]).all()


def test_budgets_by_the_premise_by_hand():
    check = {"low": 0.5, "self_gain_low": 0.1}
    assert premise_weight(check) == 0.5
    assert premise_weight({**check, "low": -0.2}) == 0  # similar clusters do not gain more
    assert premise_weight({**check, "self_gain_low": 0}) == 0  # the training was too weak to tell
    sizes, scores, ones = [10, 30, 60], np.array([0.1, 0.2, 0.1]), np.ones(3)

    def shares_at(weight):
        return shares_table(sizes, scores, ones, budget="premise", premise_weight=weight)["share"].tolist()

    weighed = np.exp([0.5, 1, 0.5]) / np.exp([0.5, 1, 0.5]).sum()
    assert shares_at(0.5) == pytest.approx(weighed.tolist())
    assert shares_at(1) == table_of_clusters(sizes, scores)["share"].tolist()
    assert shares_at(0) == shares_table(sizes, scores, ones, budget="even")["share"].tolist()


def test_effective_number_of_clusters():
    assert effective_clusters([0.25] * 4) == pytest.approx(4)
    assert effective_clusters([1, 0, 0]) == pytest.approx(1)
    stats = table_of_clusters([50, 50], [0.0, 1.0])
    text = spread_text(stats)
    assert "transferability 0.00 to 1.00" in text
    assert "shares are those of 1 equal clusters out of 2; 50.0% of the samples" in text
