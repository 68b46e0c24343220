"""Constraints on coresets: by hand, by properties, and against a slow and obvious version."""

import json
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import coincide
from coincide.base.clustered_rows import ClusteredRows
from coincide.base.errors import UserError
from coincide.base.sections import Constraints
from coincide.selection.bounds import bounds_of, least_count, most_count, read_ids
from coincide.selection.budget import total_budget
from coincide.selection.conflicts import ConstraintError, conflicts, numeric_conflicts
from coincide.selection.constraints import by_turns, constrain, constrain_clusters, outcome, read_bounds, reasons
from coincide.selection.kernel import ClusterKernel
from coincide.selection.picks import greedy_picks, pick_members, rank_picks
from coincide.selection.select import budget_table, shares_table

BATCHED = "cpu:0"  # a torch device like a GPU: clusters in batches


def samples_of(sources, text_only=()):
    """A table of samples s0, s1, …; `text_only` are positions."""
    n = len(sources)
    return pd.DataFrame(
        {
            "sample_id": [f"s{i}" for i in range(n)],
            "source": list(sources),
            "n_images": [int(i not in text_only) for i in range(n)],
        }
    )


def constraints(**values):
    return Constraints.model_validate(values)


def chosen(samples, budget, order=None, **values):
    """Rows that constraints take from an order; default: the order of the rows."""
    order = np.arange(len(samples)) if order is None else np.asarray(order)
    rows, _ = constrain(lambda count: order[:count], bounds_of(constraints(**values), samples, budget))
    return rows.tolist()


# --- the slow and obvious version -----------------------------------------------------------------------------------


def satisfies(coreset, samples, budget, section):
    """Whether a set of rows satisfies every constraint, straight from the settings."""
    table = samples.iloc[sorted(coreset)]
    text_only = section.text_only
    return (
        len(coreset) == budget
        and all((table["source"] == s).sum() >= least_count(v, budget) for s, v in section.at_least.items())
        and all((table["source"] == s).sum() <= most_count(v, budget) for s, v in section.at_most.items())
        and set(read_ids(section.keep)) <= set(table["sample_id"])
        and not set(read_ids(section.exclude)) & set(table["sample_id"])
        and (text_only.at_least is None or (table["n_images"] == 0).sum() >= least_count(text_only.at_least, budget))
        and (text_only.at_most is None or (table["n_images"] == 0).sum() <= most_count(text_only.at_most, budget))
    )


def slow_constrain(order, samples, budget, section):
    """Enumerate every coreset; take a sample if one of them contains it, all taken before and all to keep."""
    possible = [set(c) for c in combinations(range(len(samples)), budget) if satisfies(c, samples, budget, section)]
    if not possible:
        return None
    kept = set(np.flatnonzero(samples["sample_id"].isin(section.keep)))
    taken = set(kept)
    for row in order:
        if len(taken) < budget and any(taken | {row} <= coreset for coreset in possible):
            taken.add(row)
    late = kept - set(order[:budget])
    return [row for row in order if row in taken - late] + sorted(late)


number = st.one_of(st.integers(1, 8), st.sampled_from([0.1, 0.25, 0.3, 0.5, 1.0]))
sources = st.sampled_from("abc")
sections = st.fixed_dictionaries(
    {},
    optional={
        "at_least": st.dictionaries(sources, number, max_size=2),
        "at_most": st.dictionaries(sources, number | st.just(0), max_size=2),
        "text_only": st.fixed_dictionaries({}, optional={"at_least": number, "at_most": number | st.just(0)}),
        "keep": st.lists(st.integers(0, 8).map("s{}".format), max_size=2, unique=True),
        "exclude": st.lists(st.integers(0, 8).map("s{}".format), max_size=2, unique=True),
    },
)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(sources, st.booleans()), min_size=1, max_size=9), st.data(), sections)
def test_the_result_is_that_of_the_slow_version(rows, data, values):
    samples = samples_of([s for s, _ in rows], [i for i, (_, text) in enumerate(rows) if text])
    budget = data.draw(st.integers(0, len(rows)))
    order = data.draw(st.permutations(range(len(rows))))
    section = constraints(**values)
    bounds = bounds_of(section, samples, budget)
    expected = slow_constrain(order, samples, budget, section)
    known = {*samples["sample_id"]}
    assume({*section.keep} <= known)
    if expected is None:
        assert numeric_conflicts(bounds)
        with pytest.raises(ConstraintError):
            constrain(lambda count: np.array(order)[:count], bounds)
    else:
        assert not numeric_conflicts(bounds)
        result, is_added = constrain(lambda count: np.array(order)[:count], bounds)
        assert result.tolist() == expected
        assert is_added.tolist() == [row not in order[:budget] for row in expected]
        assert bounds.satisfied_by(result)


# --- properties on larger data --------------------------------------------------------------------------------------


def random_case(seed, n=400, budget=100):
    rng = np.random.default_rng(seed)
    samples = samples_of(rng.choice(list("abcdef"), n, p=[0.4, 0.3, 0.2, 0.05, 0.03, 0.02]))
    samples["n_images"] = (rng.random(n) > 0.2).astype(int)
    return samples, rng.permutation(n), budget


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.data())
def test_every_constraint_holds_and_the_total_is_met(seed, data):
    samples, order, budget = random_case(seed)
    share = st.sampled_from([0.01, 0.04, 0.1, 0.3])
    rng = np.random.default_rng(seed)
    section = constraints(
        at_least=data.draw(st.dictionaries(st.sampled_from("abcdef"), share | st.integers(1, 9), max_size=3)),
        at_most=data.draw(st.dictionaries(st.sampled_from("abcdef"), share | st.integers(0, 50), max_size=3)),
        text_only=data.draw(st.fixed_dictionaries({}, optional={"at_least": share, "at_most": share})),
        keep=samples["sample_id"][rng.permutation(400)[: data.draw(st.integers(0, 30))]].tolist(),
    )
    others = samples["sample_id"][~samples["sample_id"].isin(section.keep)]
    section.exclude = others.sample(data.draw(st.integers(0, 200)), random_state=seed).tolist()
    bounds = bounds_of(section, samples, budget)
    assume(not numeric_conflicts(bounds))
    result, _ = constrain(lambda count: order[:count], bounds)
    assert len(set(result.tolist())) == len(result) == budget
    assert satisfies(result.tolist(), samples, budget, section)
    own = samples["sample_id"].iloc[order[:budget]]
    is_late = samples["sample_id"].iloc[result].isin(set(section.keep) - set(own)).to_numpy()
    position = np.argsort(order)[result]
    assert (np.diff(position[~is_late]) > 0).all(), "not in the order of the method"
    assert (np.diff(is_late.astype(int)) >= 0).all()


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_loose_constraints_change_nothing_and_ask_the_method_once(seed):
    samples, order, budget = random_case(seed)
    own = order[:budget]
    counts = samples["source"].iloc[own].value_counts()
    text = int((samples["n_images"].iloc[own] == 0).sum())
    rng = np.random.default_rng(seed)
    section = constraints(
        at_least={source: int(rng.integers(1, count + 1)) for source, count in counts.items()},
        at_most={source: int(rng.integers(count, 200)) for source, count in counts.items()},
        text_only={"at_most": text, **({"at_least": text} if text else {})},
        keep=samples["sample_id"].iloc[rng.choice(own, 10)].tolist(),
        exclude=samples["sample_id"].iloc[order[budget : budget + 50]].tolist(),
    )
    asked = []

    def first_picks(count):
        asked.append(count)
        return order[:count]

    result, is_added = constrain(first_picks, bounds_of(section, samples, budget))
    assert result.tolist() == own.tolist()
    assert not is_added.any()
    assert asked == [budget]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
def test_a_binding_floor_changes_only_what_it_must(seed, more):
    samples, order, budget = random_case(seed)
    is_rare = (samples["source"] == "e").to_numpy()
    own = order[:budget]
    least = int(is_rare[own].sum()) + more
    assume(least <= is_rare.sum())
    result, is_added = constrain(
        lambda count: order[:count], bounds_of(constraints(at_least={"e": least}), samples, budget)
    )
    rest = order[budget:]
    others = own[~is_rare[own]]
    assert set(result[is_added]) == set(rest[is_rare[rest]][:more]), "not the next samples of the source"
    assert set(own) - set(result) == set(others[-more:]), "not the last samples of the others"
    # a higher floor keeps the samples of a lower one
    if least < is_rare.sum():
        section = constraints(at_least={"e": least + 1})
        higher, _ = constrain(lambda count: order[:count], bounds_of(section, samples, budget))
        assert set(result[is_rare[result]]) < set(higher[is_rare[higher]])


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 15))
def test_the_method_is_asked_for_no_more_than_needed(seed, least):
    """Whether a method returns its picks a few at a time or all at once is the same."""
    samples, order, budget = random_case(seed, budget=30)
    section = constraints(at_least={"d": min(least, int((samples["source"] == "d").sum()))}, at_most={"a": 3})
    bounds = bounds_of(section, samples, budget)
    few, _ = constrain(lambda count: order[:count], bounds)
    whole, _ = constrain(lambda count: order, bounds)
    assert few.tolist() == whole.tolist()


def test_a_method_whose_first_picks_depend_on_the_number_keeps_its_own_coreset_first():
    samples = samples_of("aaaaabbb")
    picks = {3: [0, 1, 5], 6: [0, 1, 2, 3, 5, 6], 8: [0, 1, 2, 3, 4, 5, 6, 7]}  # as clip_score: images, then text
    bounds = bounds_of(constraints(exclude=["s0"]), samples, 3)
    assert constrain(lambda count: np.array(picks[count]), bounds)[0].tolist() == [1, 5, 2]


# --- by hand --------------------------------------------------------------------------------------------------------


def test_sources_by_hand():
    samples = samples_of("aaaaabbbcc")
    assert chosen(samples, 5) == [0, 1, 2, 3, 4]
    assert chosen(samples, 5, at_least={"c": 1}) == [0, 1, 2, 3, 8]
    assert chosen(samples, 5, at_least={"c": 0.3, "b": 1}) == [0, 1, 5, 8, 9]  # 30% of 5, rounded up
    assert chosen(samples, 5, at_most={"a": 0.5}) == [0, 1, 5, 6, 7]  # half of 5, rounded down
    assert chosen(samples, 4, at_most={"a": 0, "b": 2}) == [5, 6, 8, 9]
    assert chosen(samples, 5, at_most={"a": 1}, at_least={"c": 2}) == [0, 5, 6, 8, 9]


def test_kept_and_excluded_samples_by_hand():
    samples = samples_of("aaaaabbbcc")
    assert chosen(samples, 4, keep=["s9", "s1"]) == [0, 1, 2, 9]
    assert chosen(samples, 4, exclude=["s0", "s2"]) == [1, 3, 4, 5]
    assert chosen(samples, 3, keep=["s9", "s8"], at_least={"b": 1}) == [5, 8, 9]
    assert chosen(samples, 4, keep=["s9"], at_most={"c": 1}, order=range(9, -1, -1)) == [9, 7, 6, 5]
    assert chosen(samples, 4, keep=["s0"], order=range(9, -1, -1)) == [9, 8, 7, 0]


def test_text_only_by_hand():
    samples = samples_of("aaaaabbbcc", text_only=[0, 1, 2, 9])
    assert chosen(samples, 4, text_only={"at_most": 0.5}) == [0, 1, 3, 4]
    assert chosen(samples, 4, text_only={"at_least": 4}) == [0, 1, 2, 9]
    # one c is asked for, and only one more text-only sample is allowed: it cannot be the second
    assert chosen(samples, 4, text_only={"at_most": 1}, at_least={"c": 2}) == [3, 4, 8, 9]


def test_counts_are_exact_in_decimals():
    assert least_count(0.29, 100) == most_count(0.29, 100) == 29
    assert (least_count(0.07, 100), most_count(0.57, 100)) == (7, 57)
    assert (least_count(1, 10), least_count(1.0, 10)) == (1, 10)


def test_ids_come_from_lists_and_files(tmp_path):
    ids = ["a", "b c", "000123"]
    (tmp_path / "ids.txt").write_text("a\n\nb c \n000123\n")
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    (tmp_path / "records.json").write_text(json.dumps([{"id": i, "conversations": []} for i in ids]))
    pd.DataFrame({"sample_id": ids, "rank": 0}).to_parquet(tmp_path / "coreset.parquet")
    assert read_ids(ids) == ids
    for name in ("ids.txt", "ids.json", "records.json", "coreset.parquet"):
        assert read_ids(str(tmp_path / name)) == ids
    (tmp_path / "other.parquet").write_bytes(b"x")
    (tmp_path / "other.json").write_text('[{"name": 1}]')
    for name in ("missing.txt", "other.parquet", "other.json"):
        with pytest.raises(UserError, match=f"{name} cannot be read as a list of sample ids"):
            read_ids(str(tmp_path / name))


def test_every_problem_is_named_with_its_numbers():
    samples = samples_of("a" * 60 + "b" * 30 + "c" * 10, text_only=range(50, 60))
    aside = {"gone", "held"}

    def lines(fractions=(0.2,), **values):
        return conflicts(constraints(**values), samples, fractions, set_aside=aside)

    assert lines(at_least={"aa": 1, "b": 1}, at_most={"zzz": 1}, keep=["s1", "x", "gone"], exclude=["y", "held"]) == [
        "selection.constraints.at_least: the dataset has no samples of a source 'aa'; did you mean a?",
        "selection.constraints.at_most: the dataset has no samples of a source 'zzz'; sources: a, b, c",
        "selection.constraints.keep: 1 id is not in the dataset: 'x'; correct or remove them",
        "selection.constraints.keep: 1 id is rejected or held out for evaluation: 'gone'; remove them",
        "selection.constraints.exclude: 1 id is not in the dataset: 'y'; correct or remove them",
    ]
    assert lines(keep=["s1", "s2", "s3", "s4", "s5"], exclude=["s1", "s2", "s3", "s4"]) == [
        "selection.constraints: 4 ids are in both keep and exclude: 's1', 's2', 's3', …; remove them from one"
    ]
    total = "0.2 of 100 samples is 20"
    assert lines(at_least={"a": 0.5, "b": 0.5, "c": 1}) == [
        f"selection.constraints: at_least and keep ask for 21 samples (a 10, b 10, c 1), but {total}; lower them or "
        "raise selection.fractions"
    ]
    assert lines((0.2, 0.5), at_least={"c": 0.3}) == [
        "selection.constraints.at_least.c: 15 samples, but there are 10 of the source c (0.5 of 100 samples is 50); "
        "lower it to at most 10"
    ]
    assert lines((0.2, 0.5), at_most={"a": 0.1, "b": 2}) == [
        f"selection.constraints: at_most and exclude leave 14 samples (a 2, b 2, other 10), but {total}; raise "
        "at_most, shorten exclude or lower selection.fractions",
        "selection.constraints: at_most and exclude leave 17 samples (a 5, b 2, other 10), but 0.5 of 100 samples is "
        "50; raise at_most, shorten exclude or lower selection.fractions",
    ]
    kept = [f"s{i}" for i in range(5)]
    assert lines(keep=kept, at_most={"a": 3}) == [
        f"selection.constraints.at_most.a: 3 samples, but keep names 5 of the source a ({total}); raise it to 5"
    ]
    assert lines(at_least={"c": 8}, exclude=[f"s{i}" for i in range(95, 100)]) == [
        "selection.constraints.at_least.c: 8 samples, but there are 5 of the source c besides 5 excluded "
        f"({total}); lower it to at most 5"
    ]
    assert lines(text_only={"at_least": 11}) == [
        f"selection.constraints.text_only.at_least: 11 samples, but there are 10 without an image ({total}); lower it "
        "to at most 10"
    ]
    assert lines(text_only={"at_least": 5}, at_most={"a": 0.2}) == [
        "selection.constraints.text_only.at_least: 5 samples, but the other constraints allow at most 4 without an "
        f"image ({total}); lower it, or the at_least of sources with images"
    ]
    assert lines(at_most={"a": 0.2}, text_only={"at_least": 4}) == []


def test_the_outcome_says_what_was_asked_and_got():
    samples = samples_of("aaaaabbbcc", text_only=[0])
    section = constraints(at_least={"c": 0.3}, at_most={"a": 2}, text_only={"at_most": 1}, keep=["s9"], exclude=["s1"])
    coreset = samples.iloc[[0, 2, 5, 8, 9]]
    assert outcome(section, samples, coreset).to_numpy().tolist() == [
        ["at least, c", 2, 2],
        ["at most, a", 2, 2],
        ["at most, text only", 1, 1],
        ["keep", 1, 1],
        ["exclude", 0, 0],
    ]
    bounds = bounds_of(section, samples, 5)
    rows, is_added = constrain(lambda count: np.arange(10)[:count], bounds)
    assert rows.tolist() == [0, 2, 5, 8, 9]
    assert reasons(bounds, rows, is_added).fillna("-").tolist() == ["-", "-", "bounds", "bounds", "keep"]


def test_bounds_are_read_for_the_samples_that_are_left(tmp_path):
    samples = samples_of("aaaaabbbcc")
    samples.to_parquet(tmp_path / "manifest.parquet")
    path = tmp_path / "manifest.parquet"
    ids = ["s9", "s0", "s5", "s6"]  # in another order
    assert read_bounds(constraints(), path, ids, 0.5) is None
    bounds = read_bounds(constraints(keep=["s5"], at_least={"c": 1}), path, ids, 0.5)
    assert (bounds.budget, bounds.kept.tolist()) == (2, [False, False, True, False])
    assert bounds.count(np.arange(4)).tolist() == [[1, 0], [3, 0]]
    with pytest.raises(ConstraintError, match="keep: 1 id is not in the dataset: 's1'"):
        read_bounds(constraints(keep=["s1"]), path, ids, 0.5)


# --- clusters -------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), min_size=1, max_size=8), st.integers(0, 2**32 - 1))
def test_turns_take_the_budgets_first_and_every_pick_once(clusters, seed):
    rng = np.random.default_rng(seed)
    budgets = np.array([min(budget, size) for size, budget in clusters])
    labels = np.repeat(np.arange(len(clusters)), [size for size, _ in clusters])
    logits = rng.normal(size=len(clusters)) * 100
    turns = by_turns(labels, budgets, logits)
    assert sorted(turns) == list(range(len(labels)))
    first = labels[turns[: budgets.sum()]]
    assert np.bincount(first, minlength=len(clusters)).tolist() == budgets.tolist()
    for cluster in range(len(clusters)):  # the picks of a cluster stay in their order
        assert (np.diff(turns[labels[turns] == cluster]) > 0).all()


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.floats(-3, 3)), min_size=1, max_size=8),
    st.integers(0, 100),
)
# the sixth cluster gets 10 in the first walk over the clusters, and 15 in the end
@example([(1, 0, 0.0), (1, 0, 0.0), (14, 0, 0.0), (1, 0, 0.0), (1, 0, 0.0), (16, 11, 0.03125), (20, 0, 0.0)], 53)
def test_budgets_have_the_least_numbers_and_follow_the_published_walk_otherwise(clusters, budget):
    sizes = np.array([size for size, *_ in clusters])
    least = np.minimum([least for _, least, _ in clusters], sizes)
    scores = [score for *_, score in clusters]
    assume(least.sum() <= budget)
    published = coincide.allocate(scores, sizes, budget)
    budgets = coincide.allocate(scores, sizes, budget, least=least)
    assert budgets.sum() == min(budget, sizes.sum())
    assert ((least <= budgets) & (budgets <= sizes)).all()
    if (least <= published).all():
        assert budgets.tolist() == published.tolist()


def test_least_budgets_by_hand():
    # 9 of 10 by shares would be (9, 0); the second cluster is owed 4
    assert coincide.allocate([2.0, 0.0], [10, 10], 9, least=[0, 4]).tolist() == [5, 4]
    assert coincide.allocate([0.0, 0.0], [10, 10], 4, least=[3, 0]).tolist() == [3, 1]
    with pytest.raises(ValueError, match="least must be"):
        coincide.allocate([0.0, 0.0], [10, 10], 4, least=[3, 2])


def test_excluded_members_are_never_picked_and_first_ones_always():
    x = np.array([[0.0], [1.0], [2.0], [3.0], [4.0]])
    kernel = ClusterKernel(x)
    assert greedy_picks(kernel, 1).tolist() == [2]
    assert greedy_picks(kernel, 1, excluded=np.arange(5) == 2).tolist() == [1]
    assert greedy_picks(kernel, 2, first=[4])[0] == 4
    # the second pick is the member that leaves MMD² of both smallest
    k = kernel.whole
    values = [(k[np.ix_([4, i], [4, i])].mean() - 2 * k[[4, i]].mean(), i) for i in range(4)]
    assert greedy_picks(kernel, 2, first=[4])[1] == min(values)[1]


def example(seed, n=120, d=6, k=8):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)).astype(np.float32)
    labels = rng.integers(0, k, n)
    clustered = ClusteredRows(x, labels, k)
    stats = shares_table(clustered.sizes, rng.uniform(0.2, 0.8, k), rng.uniform(0.5, 1, k))
    samples = samples_of(rng.choice(list("abc"), n, p=[0.6, 0.3, 0.1]))
    samples["n_images"] = rng.integers(0, 2, n)
    return clustered, labels, stats, samples


def coreset_of(case, fraction, device="cpu", within="mmd", **values):
    """The steps of the rules budget, picks and coincide_coreset."""
    clustered, labels, stats, samples = case
    section = constraints(**values)
    bounds = bounds_of(section, samples, total_budget(fraction, len(samples)))
    if lines := numeric_conflicts(bounds):
        raise ConstraintError(lines)
    members = {
        name: np.bincount(labels[mask], minlength=len(stats))
        for name, mask in (("kept", bounds.kept), ("excluded", bounds.excluded))
    }
    stats = stats.assign(budget=budget_table(stats, fraction, **members)["budget"])
    picks = pick_members(
        clustered,
        stats,
        kept=bounds.kept,
        excluded=bounds.excluded,
        beyond_budget=section.has_bounds,
        device=device,
        within=within,
    )
    return constrain_clusters(rank_picks(picks, labels, stats), labels, stats, bounds)[0]


def unconstrained(case, fraction, **options):
    clustered, _, stats, _ = case
    stats = stats.assign(budget=budget_table(stats, fraction)["budget"])
    return pick_members(clustered, stats, **options)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from([0.1, 0.25, 0.6]), st.sampled_from(["mmd", "random"]), st.data())
def test_the_coreset_of_clusters_satisfies_the_constraints(seed, fraction, within, data):
    case = example(seed)
    samples = case[3]
    budget = total_budget(fraction, len(samples))
    rows = data.draw(st.permutations(range(len(samples))))
    share = st.sampled_from([0.05, 0.1, 0.4])
    section = constraints(
        at_least=data.draw(st.dictionaries(sources, share, max_size=2)),
        at_most=data.draw(st.dictionaries(sources, share, max_size=2)),
        text_only=data.draw(st.fixed_dictionaries({}, optional={"at_most": share})),
        keep=[f"s{i}" for i in rows[: data.draw(st.integers(0, 6))]],
        exclude=[f"s{i}" for i in rows[6 : 6 + data.draw(st.integers(0, 30))]],
    )
    try:
        result = coreset_of(case, fraction, within=within, **section.model_dump())
    except ConstraintError:
        assume(False)
    assert len(set(result.tolist())) == len(result) == budget
    assert satisfies(result.tolist(), samples, budget, section)
    if within == "mmd":
        assert coreset_of(case, fraction, device=BATCHED, **section.model_dump()).tolist() == result.tolist()


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("within", ["mmd", "random"])
def test_loose_constraints_leave_the_coreset_of_clusters_as_published(seed, within):
    case = example(seed)
    samples = case[3]
    own = unconstrained(case, 0.25, within=within)
    counts = samples["source"].iloc[own].value_counts().to_dict()
    others = np.setdiff1d(np.arange(len(samples)), own)
    result = coreset_of(
        case,
        0.25,
        within=within,
        at_least=counts,
        at_most=counts,
        keep=samples["sample_id"].iloc[own[::3]].tolist(),
        exclude=samples["sample_id"].iloc[others[::2]].tolist(),
    )
    assert result.tolist() == own.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_a_floor_takes_one_sample_for_each_that_it_adds(seed):
    case = example(seed)
    samples = case[3]
    own = unconstrained(case, 0.25)
    is_rare = (samples["source"] == "c").to_numpy()
    least = int(is_rare[own].sum()) + 2
    result = coreset_of(case, 0.25, at_least={"c": least})
    assert is_rare[result].sum() == least
    assert len(set(result) - set(own)) == 2
    assert is_rare[list(set(result) - set(own))].all()


@pytest.mark.parametrize("seed", range(5))
def test_a_kept_sample_takes_the_place_of_another_of_its_cluster(seed):
    case = example(seed)
    _, labels, _, samples = case
    own = unconstrained(case, 0.25)
    budgets = np.bincount(labels[own], minlength=8)
    new = next(i for i in range(len(samples)) if i not in own and budgets[labels[i]] > 0)
    result = coreset_of(case, 0.25, keep=[f"s{new}"])
    assert new in result
    assert np.bincount(labels[result], minlength=8).tolist() == budgets.tolist()
    elsewhere = labels[own] != labels[new]
    assert set(own[elsewhere]) <= set(result)
