"""Spherical k-means: equality with plain Lloyd at every iteration, and edge cases."""

import sys
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import coincide
from coincide.base.activation_store import Activations, write_activations
from coincide.base.errors import UserError
from coincide.base.rows import Rows, unit_rows
from coincide.clustering import kmeans, lloyd, lloyd_gpu
from coincide.clustering.init import INITS, CosineScreen, draw_rows, kmeans_plus_plus, random_rows
from coincide.clustering.kmeans import assign
from coincide.clustering.lloyd import Lloyd
from coincide.clustering.lloyd_gpu import DeviceLloyd

LLOYD_VARIANTS = [
    partial(Lloyd, int8=True),
    partial(Lloyd, int8=True, keep=True),
    partial(Lloyd, int8=False),
    # on the CPU, with the numbers of half-precision products and float32 sums
    partial(DeviceLloyd, devices=["cpu"]),
    partial(DeviceLloyd, devices=["cpu", "cpu"], resident=False),
]


def blobs(n=300, k=6, d=8, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(k, d)) * 3
    truth = rng.integers(0, k, n)
    return (centres[truth] + rng.normal(size=(n, d)) * 0.1).astype(np.float32), truth


def cloud(n=700, d=24, seed=0, dtype=np.float16):
    """Rows without groups around a common mean: many close calls."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=d) + 0.8 * rng.normal(size=(n, d))).astype(dtype)


def plain_lloyd(x, centroids, iterations):
    """Labels and centroids of plain Lloyd at every iteration, dot products and sums in float64."""
    unit = unit_rows(x.astype(np.float64))
    for _ in range(iterations):
        labels = (unit @ centroids.T.astype(np.float64)).argmax(axis=1)
        sums = np.stack([unit[labels == c].sum(axis=0) for c in range(len(centroids))])
        centroids = np.where((labels == np.arange(len(centroids))[:, None]).any(1)[:, None], unit_rows(sums), centroids)
        centroids = centroids.astype(np.float32)
        yield labels, centroids, np.linalg.norm(sums, axis=1).sum() / len(x)


def stored(folder, x, groups=5):
    blocks = (([str(i) for i in rows], x[rows]) for rows in np.array_split(np.arange(len(x)), groups))
    write_activations(folder / "a.parquet", blocks, dimension=x.shape[1], metadata={"hidden_size": x.shape[1] // 2})
    return Activations(folder / "a.parquet")


@pytest.mark.parametrize("make_state", LLOYD_VARIANTS)
@pytest.mark.parametrize(("dtype", "k"), [(np.float16, 25), (np.float32, 25), (np.float16, 3)])
def test_labels_are_those_of_plain_lloyd_at_every_iteration(make_state, dtype, k, monkeypatch):
    monkeypatch.setattr(lloyd, "ROWS_PER_BATCH", 97)
    monkeypatch.setattr(lloyd_gpu, "BLOCK", 97)
    monkeypatch.setattr(lloyd_gpu, "BYTES_AT_ONCE", 24 * 8 * 31)
    x = cloud(dtype=dtype)
    seeds = unit_rows(x[:k].astype(np.float32))
    state, before = make_state(Rows(x), seeds), 0
    pruned = make_state.func is DeviceLloyd
    for labels, centroids, objective in plain_lloyd(x, seeds, 40):
        state.assign()
        assert (state.labels == labels).all()
        pruned |= state.work < 0.5
        assert state.update() == pytest.approx(objective, abs=1e-7)
        assert objective >= before - 1e-9
        np.testing.assert_allclose(state.centroids, centroids, atol=2e-6)
        assert (state.sizes == np.bincount(labels, minlength=k)).all()
        before = objective
    assert pruned  # otherwise pruning is not tested


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 60),
    st.integers(1, 20),
    st.integers(1, 9),
    st.integers(0, 2**32 - 1),
    st.sampled_from(LLOYD_VARIANTS),
)
def test_labels_are_those_of_plain_lloyd_for_small_data_of_any_shape(n, d, k, seed, make_state):
    rng = np.random.default_rng(seed)
    # small integers give copies and exact ties
    x = rng.integers(-2, 3, size=(n, d)).astype(np.float32) + np.float32(rng.random() < 0.5) * rng.normal(size=(n, d))
    x = x.astype(np.float32)[np.abs(x).sum(axis=1) > 0]
    if not len(x):
        return
    k = min(k, len(x))
    state = make_state(Rows(x), unit_rows(x[:k]))
    for _ in range(5):
        state.assign()
        # labels of exact products, up to the rounding of these
        scores = unit_rows(x.astype(np.float64)) @ state.centroids.T.astype(np.float64)
        assigned = scores[np.arange(len(x)), state.labels]
        assert (assigned >= scores.max(axis=1) - 1e-12).all()
        state.update()


def test_separate_groups_are_recovered():
    x, truth = blobs()
    clustering = coincide.spherical_kmeans(x, 6, init="k-means++")  # one first centroid in each group
    pairs = {(int(a), int(b)) for a, b in zip(truth, clustering.labels)}
    assert len(pairs) == 6
    np.testing.assert_allclose(np.linalg.norm(clustering.centroids, axis=1), 1, atol=1e-5)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    scores = unit @ clustering.centroids.T
    assert (scores.argmax(axis=1) == clustering.labels).all()
    np.testing.assert_allclose(scores.max(axis=1), clustering.similarity, atol=1e-5)


@pytest.mark.parametrize("backend", ["memory", "stream", "faiss", "torch"])
def test_every_backend_reaches_the_objective_of_plain_lloyd(backend):
    x = cloud(400, 10)
    seeds = random_rows(Rows(x), 8, 0)
    *_, (_, _, objective) = plain_lloyd(x, seeds, 50)
    clustering = coincide.spherical_kmeans(x, 8, seed=0, backend=backend)
    assert clustering.similarity.mean() == pytest.approx(objective, rel=1e-3)
    assert clustering.objective[-1] == pytest.approx(objective, rel=1e-3)
    assert all(after >= before - 1e-6 for before, after in pairwise(clustering.objective))


def test_threads_blocks_and_storage_do_not_change_a_bit(tmp_path, monkeypatch):
    x = cloud()
    expected = coincide.spherical_kmeans(x, 30, seed=4, backend="memory")

    def assert_same(clustering):
        assert clustering.labels.tolist() == expected.labels.tolist()
        assert clustering.centroids.tobytes() == expected.centroids.tobytes()
        assert clustering.similarity.tobytes() == expected.similarity.tobytes()

    assert_same(coincide.spherical_kmeans(iter(np.array_split(x, 7)), 30, seed=4, backend="stream"))
    assert_same(coincide.spherical_kmeans(stored(tmp_path, x), 30, seed=4, backend="stream"))
    assert_same(coincide.spherical_kmeans(stored(tmp_path, x, groups=1), 30, seed=4, backend="memory"))
    threads = numba.get_num_threads()
    monkeypatch.setattr(lloyd, "ROWS_PER_BATCH", 37)
    numba.set_num_threads(1)
    try:
        assert_same(coincide.spherical_kmeans(stored(tmp_path, x), 30, seed=4, backend="stream"))
        for int8 in (True, False):
            monkeypatch.setattr(lloyd, "int8_is_faster", lambda d, int8=int8: int8)
            assert_same(coincide.spherical_kmeans(x, 30, seed=4))
    finally:
        numba.set_num_threads(threads)
    monkeypatch.setattr(lloyd_gpu, "BLOCK", 101)
    for rows in (x, stored(tmp_path, x)):
        assert_same(coincide.spherical_kmeans(rows, 30, seed=4, backend="torch"))


@pytest.mark.parametrize("units", [True, False])
@pytest.mark.parametrize("shape", [(5, 1, 3), (33, 1024, 2), (70, 3000, 9), (1, 4097, 1)])
def test_products_of_int8_rows_are_exact_with_and_without_units_for_them(monkeypatch, shape, units):
    monkeypatch.setattr(lloyd, "int8_is_faster", lambda d: units)
    (m, d, k), random = shape, np.random.default_rng(0)
    rows = random.choice(np.array([-127, 127, 126], np.int8), size=(m, d))  # the largest sums of products
    columns = np.concatenate([rows[:1], random.integers(-127, 128, (k - 1, d)).astype(np.int8)])
    expected = rows.astype(np.int64) @ columns.T.astype(np.int64)
    assert (lloyd.Multiplier().multiply(rows, columns) == expected).all()


def test_permuting_the_rows_permutes_the_labels_of_given_centroids():
    x, order = cloud(), np.random.default_rng(1).permutation(700)
    a, b = (Lloyd(Rows(rows), unit_rows(x[:20].astype(np.float32))) for rows in (x, x[order]))
    for _ in range(10):
        a.assign(), b.assign()
        assert (a.labels[order] == b.labels).all()
        assert a.update() == b.update()
        assert a.centroids.tobytes() == b.centroids.tobytes()


def test_rows_drawn_are_distinct_and_far_from_each_other():
    def draw(x, k, seed):
        return draw_rows(CosineScreen(Rows(x)), k, np.random.default_rng(seed)).tolist()

    x, truth = blobs(n=400, k=10, seed=5)
    assert len(set(truth[draw(x, 10, seed=1)].tolist())) == 10
    copies = np.repeat(np.eye(4, dtype=np.float32), 25, axis=0)
    assert len(np.unique(copies[draw(copies, 4, seed=0)], axis=0)) == 4
    assert len(set(draw(copies, 50, seed=0))) == 50  # copies if nothing else is left
    assert draw(x, 400, seed=0) == list(range(400))


def test_random_rows_are_those_of_a_permutation():
    """The published procedure, faiss's: the first k rows of a random permutation."""
    x = cloud()
    order = np.random.default_rng(3).permutation(len(x))[:30]
    rows = random_rows(Rows(x), 30, 3)
    np.testing.assert_allclose(rows, unit_rows(x[np.sort(order)].astype(np.float32)), rtol=1e-6)
    assert len(np.unique(rows, axis=0)) == 30


def test_random_rows_are_not_zero_rows(tmp_path):
    x = np.concatenate([np.zeros((90, 4), np.float16), np.eye(4, dtype=np.float16).repeat(3, axis=0)])
    for rows in (x, stored(tmp_path, x)):
        drawn = random_rows(Rows(rows), 12, 0)
        assert (np.linalg.norm(drawn, axis=1) == 1).all()
    assert (random_rows(Rows(x), 20, 0) == 0).all(axis=1).sum() == 8


def test_random_rows_follow_the_density_and_kmeans_plus_plus_does_not():
    rng = np.random.default_rng(0)  # three quarters of the rows in a dense region, a quarter spread out
    dense = np.eye(1, 32) + 0.02 * rng.normal(size=(1500, 32))
    sparse = rng.normal(size=(500, 32))
    x = np.concatenate([dense, sparse]).astype(np.float32)

    def share_in_dense_region(init):
        clusterings = [coincide.spherical_kmeans(x, 40, seed=seed, init=init) for seed in range(3)]
        return np.mean([len(np.unique(c.labels[:1500])) / len(c.centroids) for c in clusterings])

    assert share_in_dense_region("random") > 2 * share_in_dense_region("k-means++")


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("backend", ["memory", "stream", "faiss", "torch"])
def test_every_backend_starts_from_the_same_first_centroids(init, backend, monkeypatch):
    x = cloud(300, 12)
    seen = []

    def recorded(rows, initial, *rest, real=kmeans.BACKENDS[backend]):
        seen.append(initial.copy())
        return real(rows, initial, *rest)

    monkeypatch.setitem(kmeans.BACKENDS, backend, recorded)
    coincide.spherical_kmeans(x, 9, seed=5, init=init, backend=backend)
    assert seen[0].tobytes() == INITS[init](Rows(x), 9, 5).tobytes()


def test_kmeans_plus_plus_finds_small_groups():
    rng = np.random.default_rng(0)  # many small groups and a few large ones
    centres, sizes = rng.normal(size=(60, 16)), (200 / np.arange(1, 61)).astype(int) + 2
    x = (np.repeat(centres, sizes, axis=0) + 0.1 * rng.normal(size=(sizes.sum(), 16))).astype(np.float16)
    group = np.repeat(np.arange(60), sizes)

    def groups_hit(init):
        found = []
        for seed in range(5):
            centroids = init(Rows(x), 30, seed)
            found.append(len(np.unique(group[(unit_rows(x.astype(np.float32)) @ centroids.T).argmax(axis=0)])))
        return np.mean(found)

    assert groups_hit(kmeans_plus_plus) > groups_hit(random_rows) + 3


def test_no_cluster_is_empty_and_fewer_distinct_rows_are_reported():
    x = np.repeat(np.eye(5, dtype=np.float32), 4, axis=0)
    with pytest.warns(UserWarning, match="3 of 8 clusters are empty"):
        clustering = coincide.spherical_kmeans(x, 8)
    assert sorted(np.bincount(clustering.labels).tolist()) == [4] * 5
    assert len(clustering.centroids) == 5
    x, _ = blobs(n=60)
    assert (np.bincount(coincide.spherical_kmeans(x, 50).labels, minlength=50) > 0).all()


def test_clusters_with_equal_first_centroids_are_filled():
    x = np.repeat(np.eye(6, dtype=np.float32), 30, axis=0) + np.random.default_rng(0).normal(size=(180, 6)) * 1e-2
    x = x.astype(np.float32)
    for backend in ("memory", "stream", "faiss"):
        with pytest.MonkeyPatch.context() as patch:
            # all first centroids but one are copies of one row: their clusters are empty
            patch.setitem(INITS, "random", lambda rows, k, seed: unit_rows(x[[5] + [0] * (k - 1)]))
            clustering = coincide.spherical_kmeans(x, 20, backend=backend)
        assert (np.bincount(clustering.labels, minlength=20) > 0).all()


def test_zero_rows_belong_to_the_first_cluster_and_are_not_centroids():
    x = np.concatenate([np.zeros((3, 8), np.float32), blobs(n=50)[0]])
    clustering = coincide.spherical_kmeans(x, 10)
    assert clustering.labels[:3].tolist() == [0, 0, 0]
    assert clustering.similarity[:3].tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="every row of x is zero"):
        coincide.spherical_kmeans(np.zeros((4, 3), np.float32), 2)
    np.testing.assert_allclose(np.linalg.norm(clustering.centroids, axis=1), 1, atol=1e-5)


def test_one_giant_cluster_and_single_outliers():
    x = np.concatenate([np.eye(40, dtype=np.float32)[1:4], np.eye(40, dtype=np.float32)[:1] + np.zeros((500, 40))])
    clustering = coincide.spherical_kmeans(x.astype(np.float16), 4)
    assert sorted(np.bincount(clustering.labels).tolist()) == [1, 1, 1, 500]


def test_k_of_one_and_of_n():
    x, _ = blobs(n=30)
    assert set(coincide.spherical_kmeans(x, 1).labels.tolist()) == {0}
    assert sorted(coincide.spherical_kmeans(x, 30).labels.tolist()) == list(range(30))


def test_fitting_on_a_sample_assigns_all_rows_and_logs_its_cost(caplog):
    x = cloud(3000)
    with caplog.at_level("INFO", "coincide.clustering.kmeans"):
        sampled = coincide.spherical_kmeans(x, 20, fit_rows=600)
    assert "fitted on 600 of 3000 rows" in caplog.text
    assert len(sampled.labels) == 3000
    whole = coincide.spherical_kmeans(x, 20)
    assert 0.98 * whole.similarity.mean() < sampled.similarity.mean() <= whole.similarity.mean()


def test_the_objective_never_falls_and_a_stall_ends_the_iterations(caplog):
    with caplog.at_level("INFO", "coincide.clustering.kmeans"):
        clustering = coincide.spherical_kmeans(cloud(), 8, iterations=500)
    assert 1 < len(clustering.objective) < 500
    assert all(after >= before for before, after in pairwise(clustering.objective))
    assert f"ends after {len(clustering.objective)} of 500 iterations" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k must be"),
        ({"k": 31}, "k must be"),
        ({"k": 2, "backend": "x"}, "backend"),
        ({"k": 2, "iterations": 0}, "iterations"),
        ({"k": 3, "fit_rows": 2}, "fit_rows"),
    ],
)
def test_refuses_invalid_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        coincide.spherical_kmeans(blobs(n=30)[0], **arguments)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_refuses_rows_that_are_not_numbers(bad, tmp_path):
    x = cloud()
    x[601, 3] = bad
    for rows in (x, stored(tmp_path, x)):
        with pytest.raises(ValueError, match="row 601"):
            Lloyd(Rows(rows), np.eye(24, dtype=np.float32)).assign()
        with pytest.raises(ValueError, match="row 601"):
            coincide.spherical_kmeans(rows, 3)


def test_the_error_names_the_missing_package():
    try:
        import cuml  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="needs the packages cuml and cupy"):
            coincide.spherical_kmeans(np.eye(3, dtype=np.float32), 2, backend="cuml")


class _L2KMeans:
    """Stand-in for cuml.cluster.KMeans, by scikit-learn: tests the code around cuML, not cuML.

    It has no inertia: whether that belongs to the centroids before or after the iteration is not the same everywhere.
    """

    def __init__(self, *, n_clusters, init, n_init, max_iter, random_state):
        from sklearn.cluster import KMeans

        assert (n_init, max_iter) == (1, 1)
        self.kmeans = KMeans(n_clusters, init=init, n_init=1, max_iter=1, random_state=random_state)

    def fit(self, x):
        self.cluster_centers_ = self.kmeans.fit(x).cluster_centers_


def test_l2_iterations_with_normalised_centroids_are_spherical(monkeypatch):
    monkeypatch.setattr(kmeans, "_float32_fits", lambda rows, k: True)
    monkeypatch.setattr(kmeans, "CUML_BLOCK", 64)
    cupy = SimpleNamespace(asarray=np.asarray, asnumpy=np.asarray, concatenate=np.concatenate)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "cuml", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cuml.cluster", SimpleNamespace(KMeans=_L2KMeans))
    x = cloud(400, 10)
    first = random_rows(Rows(x), 8, 0)
    *_, (labels, _, _) = plain_lloyd(x, first, 12)
    clustering = coincide.spherical_kmeans(x, 8, seed=0, iterations=12, stalled=-1, backend="cuml")
    # as in plain_lloyd, an iteration of scikit-learn is an assignment and an update; then labels are assigned again
    assert (clustering.labels == labels).mean() > 0.98
    assert all(after >= before - 1e-6 for before, after in pairwise(clustering.objective))
    # the objective of an iteration is the similarity with the centroids after it, worked out here
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    sums = np.zeros((8, 10))
    np.add.at(sums, (unit @ first.T).argmax(axis=1), unit)
    after_one = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    assert clustering.objective[0] == pytest.approx((unit @ after_one.T).max(axis=1).mean(), abs=1e-5)
    assert clustering.objective[-1] == pytest.approx(clustering.similarity.mean(dtype=np.float64), abs=1e-5)
    monkeypatch.setattr(kmeans.os, "sysconf", lambda name: 1)
    with pytest.raises(MemoryError, match="use backend torch"):
        coincide.spherical_kmeans(x, 8, backend="cuml")


@pytest.mark.parametrize("make_state", LLOYD_VARIANTS)
def test_ties_go_to_the_lowest_cluster(make_state):
    state = make_state(Rows(np.eye(2, dtype=np.float32)), np.array([[1, 0], [1, 0], [0, 1]], np.float32))
    state.assign()
    assert state.labels.tolist() == [0, 2]
    assert state.similarity().tolist() == [1, 1]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_rows_are_assigned_to_given_centroids_by_the_largest_product(dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 12)).astype(dtype)
    x[7] = 0
    centroids = unit_rows(rng.normal(size=(9, 12)).astype(np.float32))
    centroids[4] = -unit_rows(x[:1].astype(np.float32))[0]
    result = assign(x, centroids)
    products = unit_rows(x.astype(np.float64)) @ centroids.astype(np.float64).T
    assert result.labels.tolist() == products.argmax(axis=1).tolist()
    np.testing.assert_allclose(result.similarity, products.max(axis=1), atol=1e-5)
    assert (result.labels[7], result.similarity[7]) == (0, 0)
    assert result.centroids is centroids
    with pytest.raises(UserError, match="12 numbers per sample, the centroids 5"):
        assign(x, centroids[:, :5])
