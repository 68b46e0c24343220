"""Baselines: each against a small case worked by hand, and properties of all."""

import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import REPO, Workplace
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from coincide import methods
from coincide.base.activation_store import write_activations
from coincide.base.clustered_rows import ClusteredRows
from coincide.base.errors import UserError
from coincide.methods import clip_score, d2_pruning, self_filter, semdedup
from coincide.methods._inputs import MethodInputs
from coincide.selection import ranking
from coincide.selection.ranking import band, nearest


class InMemory(MethodInputs):
    """Artefacts in memory."""

    def __init__(self, **artefacts):
        self.__dict__.update(artefacts)

    @property
    def activations(self):
        return self.__dict__["activations"]

    def embedding(self, name):
        return self.__dict__[name]


def clusters_of(n, similarity=None):
    similarity = np.linspace(0.1, 0.9, n) if similarity is None else similarity
    return pd.DataFrame({"sample_id": [f"s{i}" for i in range(n)], "cluster": 0, "similarity": similarity})


def pick(name, inputs, count, seed=0, **values):
    indices, scores = methods.pick(name, inputs, count, seed=seed, values=methods.settings(name, values))
    return indices.tolist(), scores


def test_random_depends_on_the_seed_only():
    inputs = InMemory(clusters=clusters_of(1000))
    draws = [pick("random", inputs, 300, seed=seed)[0] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert 200 < len(set(draws[0]) - set(draws[2])) < 230  # 70% of 300


@pytest.mark.parametrize(
    ("keep", "expected"), [("top", [1, 4]), ("bottom", [2, 0]), ("middle", [3, 0])]
)  # row 3 has the middle rank; rows 0 and 4 are equally near, the lower score comes first
def test_bands_worked_by_hand(keep, expected):
    scores = pd.DataFrame({"el2n": [0.3, 0.9, 0.1, 0.5, 0.7], "loss": np.log([3, 9, 1, 5, 7])})
    inputs = InMemory(clusters=clusters_of(5), sample_metrics=scores)
    assert pick("el2n", inputs, 2, keep=keep)[0] == expected
    indices, perplexity = pick("perplexity", inputs, 2, keep=keep)
    assert indices == expected
    np.testing.assert_allclose(perplexity, [3, 9, 1, 5, 7])


@pytest.mark.parametrize(
    ("n", "count", "ranks"),
    [
        (6, 1, [3]), (6, 2, [2, 3]), (6, 3, [2, 3, 4]), (6, 4, [1, 2, 3, 4]), (6, 5, [1, 2, 3, 4, 5]),
        (7, 1, [3]), (7, 2, [2, 3]), (7, 3, [2, 3, 4]), (7, 4, [1, 2, 3, 4]), (7, 6, [0, 1, 2, 3, 4, 5]),
    ],
)  # fmt: skip
def test_the_middle_band_is_the_published_window(n, count, ranks):
    scores = np.random.default_rng(0).permutation(n).astype(float)  # each is its rank
    assert sorted(scores[band(scores, count, "middle")]) == ranks


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.data())
def test_the_middle_band_starts_at_half_of_n_minus_half_of_the_count(scores, data):
    count = data.draw(st.integers(1, len(scores)))
    ascending = sorted(range(len(scores)), key=lambda i: scores[i])
    start = len(scores) // 2 - count // 2
    assert sorted(band(scores, count, "middle")) == sorted(ascending[start : start + count])


def test_clip_score_keeps_the_highest_and_the_same_share_of_text():
    scores = np.array([0.1, np.nan, 0.4, 0.3, np.nan, 0.2, np.nan, np.nan, 0.5, 0.6])
    for seed in range(5):
        indices, _ = pick("clip_score", InMemory(clusters=clusters_of(10), clip_scores=scores), 5, seed=seed)
        assert indices[:3] == [9, 8, 2]  # 2 of 5 are text: 40%, as among all
        assert np.isnan(scores[indices[3:]]).all()
        assert len(set(indices)) == 5
    assert len(clip_score.pick(InMemory(clip_scores=np.full(4, np.nan)), 3, seed=0)[0]) == 3


def test_self_sup_by_distance_from_the_prototypes():
    inputs = InMemory(clusters=clusters_of(4, [0.2, 0.9, 0.5, 0.7]))
    assert pick("self_sup", inputs, 2)[0] == [1, 3]
    assert pick("self_sup", inputs, 2, keep="farthest")[0] == [0, 2]


def angles(*degrees):
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1).astype(np.float32)


def test_semdedup_worked_by_hand():
    # one cluster with its centroid at about 24°; members from the farthest: 60°, 0°, 1°, 40°, 20°
    x = angles(0, 1, 20, 40, 60)
    similarity = (x @ x.mean(axis=0)) / np.linalg.norm(x.mean(axis=0))
    expected = [np.cos(np.radians(d)) for d in (60, 1, 19, 20)]
    cosine = semdedup.redundancy(ClusteredRows(x, np.zeros(5, int)), similarity)
    assert cosine[4] == -1
    np.testing.assert_allclose(cosine[[0, 1, 2, 3]], expected, atol=1e-6)
    # 1° is a near-copy of 0°, which is farther from the centroid: it is removed first
    indices, _ = pick("semdedup", InMemory(clusters=clusters_of(5), last_token=x), 4, k=1)
    assert set(indices) == {0, 2, 3, 4}


@examples(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_semdedup_equals_the_slow_version(n, k, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    labels, similarity = rng.integers(0, k, n), rng.integers(0, 3, n) / 3
    cosine = semdedup.redundancy(ClusteredRows(x, labels), similarity)
    for i in range(n):
        earlier = [j for j in range(n) if labels[j] == labels[i] and (similarity[j], j) < (similarity[i], i)]
        assert cosine[i] == pytest.approx(max([float(x[i] @ x[j]) for j in earlier], default=-1), abs=1e-5)


def test_d2_pruning_worked_by_hand():
    # 0 and 1 are neighbours of each other; 1 is the neighbour of 2. At γ_f = 1 the weights are 1/2, 1/2, 1/4
    squared, index = np.log([[2.0], [2.0], [4.0]]), np.array([[1], [0], [1]])
    order, forward = d2_pruning.pass_messages(np.array([1.0, 0.8, 0.5]), squared, index, 3, 1.0, 1.0)
    np.testing.assert_allclose(forward, [1.4, 1.3, 0.7])
    # 0 is picked first and lowers 1 by 0.7 to 0.6, below 2; then 2 lowers 1 by 0.25 · 0.7
    assert order.tolist() == [0, 2, 1]
    # at γ_r = 0 a pick lowers its neighbours by all of its s: 1 to -0.1
    assert d2_pruning.pass_messages(np.array([1.0, 0.8, 0.05]), squared, index, 3, 1.0, 1.0)[0].tolist() == [0, 1, 2]
    assert d2_pruning.pass_messages(np.array([1.0, 0.8, 0.05]), squared, index, 3, 1.0, 0.0)[0].tolist() == [0, 2, 1]
    # a negative importance counts as ε
    forward = d2_pruning.pass_messages(np.array([-1.0, 0.8, 0.5]), squared, index, 3, 1.0, 1.0)[1]
    np.testing.assert_allclose(forward, [0.4 + 1e-7, 0.8 + 0.5e-7, 0.7])


@pytest.mark.parametrize(("keep", "expected"), [("easy", [0, 2, 1]), ("hard", [1, 2, 0])])
def test_d2_pruning_keeps_the_easy_or_the_hard_first(keep, expected):
    metrics = pd.DataFrame({"margin": [0.9, -0.3, 0.2]})
    far_apart = np.array([[0.0], [100.0], [200.0]], np.float32)
    inputs = InMemory(clusters=clusters_of(3), sample_metrics=metrics, mean=far_apart)
    indices, scores = pick("d2_pruning", inputs, 3, keep=keep)
    assert indices == expected
    np.testing.assert_allclose(scores, [0.9, 1e-7, 0.2] if keep == "easy" else [1e-7, 1.2, 0.7], atol=1e-9)


def published_d2_pruning(margin, x, count, k):
    """D2-Pruning as COINCIDE's code runs it, from all distances, with the largest s searched anew for each pick."""
    n = len(margin)
    d = ((x[:, None].astype(np.float64) - x) ** 2).sum(axis=2)
    neighbours = [sorted((j for j in range(n) if j != i), key=lambda j, i=i: d[i, j])[:k] for i in range(n)]
    importance = np.maximum(margin, 1e-7)
    s = [importance[i] + sum(np.exp(-1.0 * d[i, j]) * importance[j] for j in neighbours[i]) for i in range(n)]
    picked = []
    for _ in range(count):
        i = max((j for j in range(n) if j not in picked), key=lambda j: s[j])
        picked.append(i)
        for j in neighbours[i]:
            s[j] -= np.exp(-0.4 * d[i, j]) * s[i]
    return picked


@examples(max_examples=50, deadline=None)
@given(st.integers(2, 30), st.integers(1, 6), st.sampled_from([0.0, 30.0]), st.integers(0, 2**32 - 1))
def test_d2_pruning_picks_as_published(n, k, offset, seed):
    rng = np.random.default_rng(seed)
    # near each other, so that messages count, and also far from the origin, where norms hide the distances
    x = (rng.normal(size=(n, 4)) * 0.5 + offset).astype(np.float32)
    margin, count = rng.uniform(-1, 1, n), rng.integers(1, n + 1)
    inputs = InMemory(clusters=clusters_of(n), sample_metrics=pd.DataFrame({"margin": margin}), mean=x)
    indices, _ = pick("d2_pruning", inputs, count, neighbours=k)
    assert indices == published_d2_pruning(margin, x, count, k)


@examples(max_examples=25, deadline=None)
@given(st.integers(2, 30), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_nearest_leaves_out_the_row_itself_also_among_copies(n, k, seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(-2, 3, size=(n, 2)).astype(np.float32)  # some rows are copies
    squared, index = nearest(x, k)
    k = min(k, n - 1)
    distances = ((x[:, None] - x) ** 2).sum(axis=2)
    for i in range(n):
        assert i not in index[i]
        assert len(set(index[i])) == k
        np.testing.assert_allclose(np.sort(squared[i]), np.sort(np.delete(distances[i], i))[:k], atol=1e-5)


def test_nearest_finds_k_neighbours_where_the_searched_lists_are_short(monkeypatch):
    x = np.random.default_rng(0).normal(size=(900, 2)).astype(np.float32)
    _, exact = nearest(x, 600)
    monkeypatch.setattr(ranking, "EXACT", 100)  # 30 lists, of which 16 are searched: about 480 rows
    _, index = nearest(x, 600)
    assert index.min() >= 0
    assert all(len(set(row)) == 600 and i not in row for i, row in enumerate(index))
    assert np.mean([len(set(a) & set(b)) for a, b in zip(index, exact)]) > 590


def test_self_filter_worked_by_hand():
    # 0 and 1 have a cosine of 0.8, 2 is orthogonal to both
    unit = np.array([[1, 0, 0], [0.8, 0.6, 0], [0, 0, 1]], np.float32)
    # 0 is picked first and lowers 1 by 0.64 to 0.26, below 2
    assert self_filter.pick_diverse([1.0, 0.9, 0.5], unit, 3, 1, 1.0).tolist() == [0, 2, 1]
    assert self_filter.pick_diverse([1.0, 0.9, 0.5], unit, 3, 1, 0.0).tolist() == [0, 1, 2]
    # a negative penalty increases the difficulty: 0 raises 1 from -0.9 to -0.26
    assert self_filter.pick_diverse([-1.0, -0.9, -1.2], unit, 2, 1, 1.0).tolist() == [1, 0]


@examples(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_self_filter_equals_the_slow_version(n, neighbours, seed):
    rng = np.random.default_rng(seed)
    unit = rng.normal(size=(n, 3)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    difficulty = rng.normal(size=n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(self_filter, "LOOKUP_FACTOR", 2)  # so few that some rows run out of neighbours
        order = self_filter.pick_diverse(difficulty, unit, n, neighbours, 0.7)
    d, left = difficulty.copy(), list(range(n))
    for i in order:
        assert d[i] >= max(d[j] for j in left) - 1e-5
        left.remove(i)
        for j in sorted(left, key=lambda j: -(unit[i] @ unit[j]))[:neighbours]:
            d[j] -= 0.7 * d[i] * (unit[i] @ unit[j]) ** 2


def published_self_filter(difficulty, x, count, k, gamma):
    """Self-Filter's second stage, with all similarities and all difficulties sorted anew for each pick."""
    x = x.astype(np.float64)
    left, picked = dict(enumerate(difficulty)), []
    for _ in range(count):
        i = max(left, key=lambda j: left[j])
        difficulty_of_pick = left.pop(i)
        picked.append(i)
        similarity = x @ x[i] / np.linalg.norm(x, axis=1) / np.linalg.norm(x[i])
        for j in [j for j in np.argsort(-similarity) if j in left][:k]:
            left[j] -= gamma * difficulty_of_pick * similarity[j] ** 2
    return picked


def test_self_filter_picks_as_published_only_from_float32(tmp_path):
    n, e = 600, 24
    rng = np.random.default_rng(3)
    # image and text vectors around few centres, and the difficulty of the network's first weights
    centres = rng.normal(size=(12, 2, e // 2))
    x = centres[rng.integers(0, 12, n)] + 0.01 * rng.normal(size=(n, 2, e // 2))
    x = (x / np.linalg.norm(x, axis=2, keepdims=True)).reshape(n, e).astype(np.float32)
    weights = rng.normal(0, 0.02, e)
    difficulty = -(x.astype(np.float64) @ weights)
    clusters = clusters_of(n)
    clusters.to_parquet(tmp_path / "clusters.parquet")
    table = clusters[["sample_id"]].assign(clip_score=0.0, embedding_float32=[row.tobytes() for row in x])
    table.to_parquet(tmp_path / "clip.parquet")
    clusters[["sample_id"]].assign(difficulty=difficulty).to_parquet(tmp_path / "difficulty.parquet")
    inputs = MethodInputs(
        tmp_path / "clusters.parquet", None, None, [tmp_path / "clip.parquet"], tmp_path / "difficulty.parquet"
    )
    expected = published_self_filter(difficulty, x, 150, 10, 1.0)
    assert pick("self_filter", inputs, 150)[0] == expected
    rounded = x.astype(np.float16)
    from_float16 = published_self_filter(-(rounded.astype(np.float64) @ weights), rounded, 150, 10, 1.0)
    assert len(set(from_float16) - set(expected)) >= 5


@examples(max_examples=15, deadline=None)
@given(st.integers(8, 60), st.floats(0.05, 1), st.integers(0, 2**32 - 1))
def test_every_method_keeps_the_count_and_no_row_twice(n, fraction, seed):
    rng = np.random.default_rng(seed)
    unit = rng.normal(size=(n, 5)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    text_only = rng.random(n) < 0.3
    metrics = pd.DataFrame({name: rng.normal(size=n) for name in ("loss", "el2n", "margin")})
    for name in ("loss_no_image", "visual_necessity", "question_loss", "question_loss_given_answer"):
        metrics[name] = np.where(text_only, np.nan, rng.normal(size=n))
    inputs = InMemory(
        clusters=clusters_of(n), activations=unit, last_token=unit, mean=unit, question=unit,
        vision=np.where(text_only[:, None], 0, unit), sample_metrics=metrics,
        clip_scores=np.where(text_only, np.nan, rng.random(n)),
        clip_embeddings=unit, difficulty=rng.normal(size=n),
    )  # fmt: skip
    count = max(1, int(fraction * n))
    for name in methods.names():
        indices, scores = pick(name, inputs, count, seed=seed)
        assert len(indices) == len(set(indices)) == count, name
        assert len(scores) == n, name


def test_inputs_are_read_in_the_order_of_the_clusters(tmp_path):
    clusters = clusters_of(4)
    clusters.to_parquet(tmp_path / "clusters.parquet")
    shards = [pd.DataFrame({"sample_id": ids, "clip_score": values,
                            "embedding_float32": [np.float32([v, 1]).tobytes() for v in values]}) for ids, values in
              ((["s2", "s0", "rejected"], [0.2, 0.0, 9.0]), (["s3", "s1"], [np.nan, 0.1]))]  # fmt: skip
    pd.DataFrame({"sample_id": ["s3", "s2", "s1", "s0"], "difficulty": [3.0, 2, 1, 0]}).to_parquet(
        tmp_path / "d.parquet"
    )
    paths = []
    for i, shard in enumerate(shards):
        paths.append(tmp_path / f"{i}.parquet")
        shard.to_parquet(paths[-1])
    write_activations(tmp_path / "mean.parquet", [(["a"], np.ones((1, 2)))], dimension=2, metadata={"hidden_size": 1})
    inputs = MethodInputs(tmp_path / "clusters.parquet", None, tmp_path, paths, tmp_path / "d.parquet")
    np.testing.assert_array_equal(inputs.clip_embeddings, np.float32([[0.0, 1], [0.1, 1], [0.2, 1], [np.nan, 1]]))
    np.testing.assert_array_equal(inputs.difficulty, [0, 1, 2, 3])
    np.testing.assert_array_equal(inputs.clip_scores, [0.0, 0.1, 0.2, np.nan])
    assert inputs.embedding("mean").shape == (1, 2)


def test_a_table_of_another_version_is_reported(tmp_path):
    clusters_of(1).to_parquet(tmp_path / "clusters.parquet")
    pd.DataFrame({"sample_id": ["s0"], "clip_score": [0.5], "embedding": [b"ab"]}).to_parquet(tmp_path / "0.parquet")
    inputs = MethodInputs(tmp_path / "clusters.parquet", None, None, [tmp_path / "0.parquet"])
    with pytest.raises(UserError, match=r"0\.parquet has no column 'embedding_float32', .*: delete it and rerun"):
        inputs.clip_embeddings  # noqa: B018


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [("el2n", {"keep": "most"}, "keep: .*'most'"), ("el2n", {"kepe": "top"}, "kepe: "), ("semdedup", {"k": 0}, "k")],
)
def test_invalid_settings_are_refused(name, values, message):
    with pytest.raises(ValueError, match=message):
        methods.settings(name, values)


def add_method(folder, monkeypatch, name, code):
    """Add a module to the methods, as a user would with a file in coincide/methods."""
    (folder / f"{name}.py").write_text(code)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(folder)])
    methods.names.cache_clear()
    monkeypatch.delitem(sys.modules, f"coincide.methods.{name}", raising=False)


@pytest.fixture(autouse=True)
def _restore_names():
    yield
    methods.names.cache_clear()


def test_the_method_in_the_docs_works_unchanged(tmp_path, monkeypatch):
    text = (REPO / "docs/methods.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) < 30
    add_method(tmp_path, monkeypatch, "documented", code)
    scores = pd.DataFrame({"loss": [0.1, 1.0, 1.1, 1.2, 9.0], "el2n": [0.1, 0.5, 0.7, 0.6, 9.0]})
    assert pick("documented", InMemory(clusters=clusters_of(5), sample_metrics=scores), 2, widest=0.8)[0] == [2, 3]
    with pytest.raises(ValueError, match="widest"):
        methods.settings("documented", {"widest": 2.0})


@pytest.mark.parametrize("needs", ['("scores",)', '"clip_scores"', "None"])
def test_a_wrong_needs_entry_is_reported_with_the_method(tmp_path, monkeypatch, needs):
    add_method(tmp_path, monkeypatch, "mistaken", f"NEEDS = {needs}")
    with pytest.raises(UserError, match=r"method 'mistaken': NEEDS is .* sample_metrics, clip_scores, difficulty"):
        methods.needs("mistaken")


@pytest.mark.parametrize("artefact", ["sample_metrics", "clip_scores", "clip_embeddings", "difficulty"])
def test_reading_an_artefact_that_is_not_declared_is_reported_with_the_method(tmp_path, artefact):
    clusters_of(2).to_parquet(tmp_path / "clusters.parquet")
    inputs = MethodInputs(tmp_path / "clusters.parquet", tmp_path, [], [], [], method="mistaken")
    with pytest.raises(UserError, match=r"method 'mistaken' reads \w+: add '\w+' to its NEEDS"):
        getattr(inputs, artefact)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("[0, 1, 2]", r"must return \(indices, scores\); it returned list"),
        ("([0, 1], range(5))", r"must return 3 integer indices of rows; it returned shape \(2,\)"),
        ("([0.0, 1.0, 2.0], range(5))", "must return 3 integer indices of rows; .* dtype float64"),
        ("([0, 1, 1], range(5))", r"must return distinct indices in 0\.\.4"),
        ("([0, 1, 5], range(5))", r"must return distinct indices in 0\.\.4"),
        ("([0, 1, 2], range(3))", r"must return one score for each of the 5 samples; it returned shape \(3,\)"),
    ],
)
def test_a_wrong_result_is_reported_with_the_method(tmp_path, monkeypatch, result, message):
    code = f"NEEDS = ()\n\ndef pick(inputs, count, *, seed):\n    return {result}\n"
    add_method(tmp_path, monkeypatch, "mistaken", code)
    with pytest.raises(UserError, match=f"method 'mistaken': pick {message}"):
        pick("mistaken", InMemory(clusters=clusters_of(5)), 3)


def test_the_registry_imports_without_heavy_packages():
    code = "import sys, coincide.methods; print(*{'pandas', 'numba', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.workflow
def test_a_run_of_every_method(finished, tmp_path):
    workplace = Workplace(tmp_path)
    shutil.copytree(finished / "resources", tmp_path / "resources")
    small = yaml.safe_load((REPO / "tests/config/small.yaml").read_text())
    small["reference_model"] |= {"sample_metrics": True, "extra_metrics": list(methods.EXTRA_METRICS)}
    small["selection"]["methods"] = ["coincide", *methods.names()]
    (tmp_path / "methods.yaml").write_text(yaml.safe_dump(small))
    code, output = workplace.run("select", config=tmp_path / "methods.yaml")
    assert code == 0, output
    run = tmp_path / "results/small"
    n = len(pd.read_parquet(run / "manifest.parquet"))
    coresets = {m: pd.read_parquet(run / f"coresets/{m}/0.2/coreset.parquet") for m in small["selection"]["methods"]}
    assert all(len(c) == c["sample_id"].nunique() == n // 5 for c in coresets.values())
    # extracting sample metrics as well does not change the activations
    for method in ("coincide", "random"):
        path = f"results/small/coresets/{method}/0.2/coreset.parquet"
        assert (tmp_path / path).read_bytes() == (finished / path).read_bytes()
    scores = pd.read_parquet(run / "sample_metrics/sample_metrics.parquet").set_index("sample_id")
    kept = coresets["perplexity"]["sample_id"]
    rank = scores["loss"].rank(pct=True)[kept]
    assert rank.between(0.39, 0.61).all()
    text_only = pd.read_parquet(run / "manifest.parquet").set_index("sample_id")["n_images"] == 0
    assert text_only[coresets["clip_score"]["sample_id"]].sum() == n // 5 * text_only.sum() // n
    for method in ("visnec", "prism"):
        assert abs(text_only[coresets[method]["sample_id"]].sum() - n // 5 * text_only.sum() / n) < 1, method
    necessity = scores["visual_necessity"]
    pd.testing.assert_series_equal(necessity.isna(), text_only, check_names=False)
    np.testing.assert_allclose(necessity, scores["loss_no_image"] - scores["loss"], atol=1e-6)
    picked = necessity[coresets["visnec"]["sample_id"]]
    assert picked.mean() > necessity.drop(picked.index).mean()
    difficulty = pd.read_parquet(run / "difficulty.parquet").set_index("sample_id")["difficulty"]
    assert len(difficulty) == n
    assert coresets["self_filter"]["sample_id"][0] == difficulty.idxmax()
    assert not (run / "checkpoints/difficulty").exists()
