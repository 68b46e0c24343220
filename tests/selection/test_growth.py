"""What coresets take over from an earlier run: by hand, by properties, and what is refused before the first job."""

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import REPO
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from snakemake.utils import update_config

from coincide.base.clustered_rows import ClusteredRows
from coincide.base.sections import Config, Constraints
from coincide.selection.bounds import bounds_of, coreset_budget
from coincide.selection.budget import total_budget
from coincide.selection.conflicts import ConstraintError, conflicts, numeric_conflicts
from coincide.selection.constraints import constrain, constrain_clusters, read_bounds, reasons
from coincide.selection.growth import Growth, growth_problems, read_growth, read_growths
from coincide.selection.picks import pick_members, rank_picks
from coincide.selection.select import budget_table, shares_table


def samples_of(n):
    return pd.DataFrame({"sample_id": [f"s{i}" for i in range(n)], "source": "a", "n_images": 1})


def ids(rows):
    return frozenset(f"s{i}" for i in rows)


def growth_of(old, picks=(), fraction=0.2, **values):
    return Growth("random", fraction, "results/first", ids(old), ids(picks), **values)


def chosen(samples, growth, order=None, **values):
    """(rows of the coreset in an order, what each is due to)."""
    order = np.arange(len(samples)) if order is None else np.asarray(order)
    section = Constraints.model_validate(values)
    bounds = bounds_of(section, samples, coreset_budget(section, samples, growth.fraction, growth), growth)
    rows, is_added = constrain(lambda count: order[:count], bounds)
    return rows.tolist(), reasons(bounds, rows, is_added).fillna("").tolist()


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_the_four_ways_to_grow_by_hand():
    samples, old = samples_of(20), range(10)  # s0 to s9 are old, s10 to s19 new; the order of a method is the rows'
    # all, earlier picks kept: 4 of 20
    assert chosen(samples, growth_of(old, [8, 9])) == ([0, 1, 8, 9], ["", "", "earlier", "earlier"])
    # new, earlier picks kept: 2 of 10, and the picks
    rows, due_to = chosen(samples, growth_of(old, [1, 9], only_new=True))
    assert (rows, due_to) == ([1, 9, 10, 11], ["earlier", "earlier", "", ""])
    # new only
    assert chosen(samples, growth_of(old, only_new=True)) == ([10, 11], ["", ""])
    # an old sample that `keep` names is in addition to those of the fraction; a new one is among them
    rows, due_to = chosen(samples, growth_of(old, [9], only_new=True), keep=["s3", "s15"])
    assert (sorted(rows), sorted(due_to)) == ([3, 9, 10, 15], ["", "earlier", "keep", "keep"])


def test_other_constraints_hold_together_with_earlier_picks():
    samples = samples_of(20).assign(source=["a"] * 18 + ["b"] * 2)
    growth = growth_of(range(10), [0, 1], only_new=True)
    assert chosen(samples, growth, at_least={"b": 1}) == ([0, 1, 10, 18], ["earlier", "earlier", "", "bounds"])
    assert chosen(samples, growth, exclude=["s10", "s5"])[0] == [0, 1, 11, 12]


def test_earlier_picks_that_are_gone_are_not_kept():
    samples = samples_of(20)
    growth = growth_of(range(-3, 10), [-3, -2, 4], only_new=True)
    assert chosen(samples, growth) == ([4, 10, 11], ["earlier", "", ""])
    assert not conflicts(Constraints(), samples, [], growths=[growth])


# --- properties ------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.sampled_from([0.05, 0.2, 0.29, 0.5]), st.booleans(), st.data())
def test_the_result_is_that_of_the_obvious_version(seed, n_old, fraction, only_new, data):
    rng, n = np.random.default_rng(seed), 80
    order, old = rng.permutation(n), rng.permutation(n)[:n_old]
    samples = samples_of(n)
    picks = set(old[: data.draw(st.integers(0, total_budget(fraction, n_old)))].tolist())
    new = [row for row in order if row not in set(old.tolist())]
    budget = len(picks) + total_budget(fraction, len(new)) if only_new else total_budget(fraction, n)
    assume(budget)
    rows, due_to = chosen(samples, growth_of(old, picks, fraction, only_new=only_new), order)
    candidates = new if only_new else [row for row in order if row not in picks]
    assert set(rows) == picks | set(candidates[: budget - len(picks)])
    assert len(rows) == budget
    assert {row for row, reason in zip(rows, due_to) if reason == "earlier"} == picks
    assert set(due_to) <= {"earlier", ""}


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(0, 10))
def test_earlier_picks_that_a_method_picks_anyway_change_nothing(seed, kept):
    rng = np.random.default_rng(seed)
    order = rng.permutation(100)
    own = order[:20]
    rows, _ = chosen(samples_of(100), growth_of(range(100), rng.permutation(own)[:kept]), order)
    assert rows == own.tolist()


def clustered_case(seed, n=120, d=6, k=8):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    clustered = ClusteredRows(rng.normal(size=(n, d)).astype(np.float32), labels, k)
    return clustered, labels, shares_table(clustered.sizes, rng.uniform(0.2, 0.8, k), rng.uniform(0.5, 1, k))


def coreset_of_clusters(case, samples, fraction, growth, **values):
    """The steps of the rules budget, picks and coincide_coreset."""
    clustered, labels, stats = case
    section = Constraints.model_validate(values)
    bounds = bounds_of(section, samples, coreset_budget(section, samples, fraction, growth), growth)
    if numeric_conflicts(bounds):
        return None
    members = {name: np.bincount(labels[getattr(bounds, name)], minlength=len(stats)) for name in ("kept", "excluded")}
    stats = stats.assign(budget=budget_table(stats, fraction, total=bounds.budget, **members)["budget"])
    picks = pick_members(clustered, stats, kept=bounds.kept, excluded=bounds.excluded, beyond_budget=section.has_bounds)
    return constrain_clusters(rank_picks(picks, labels, stats), labels, stats, bounds)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([0.1, 0.25, 0.6]), st.booleans(), st.sampled_from([{}, {"a": 0.3}]))
def test_the_coreset_of_clusters_keeps_earlier_picks_and_meets_its_budget(seed, fraction, only_new, at_least):
    case, samples = clustered_case(seed), samples_of(120)
    rng = np.random.default_rng(seed)
    samples["source"] = rng.choice(list("ab"), 120)
    old = rng.permutation(120)[: rng.integers(1, 110)]
    picks = old[: total_budget(fraction, len(old))]
    growth = growth_of(old, picks, fraction, only_new=only_new)
    result = coreset_of_clusters(case, samples, fraction, growth, at_least=at_least)
    assume(result)
    rows = result[0]
    is_old = np.isin(rows, old)
    assert len(set(rows.tolist())) == len(rows)
    assert set(picks.tolist()) <= set(rows.tolist())
    if only_new:
        assert set(rows[is_old].tolist()) == set(picks.tolist())
        assert (~is_old).sum() == total_budget(fraction, 120 - len(old))
    else:
        assert len(rows) == total_budget(fraction, 120)


def test_clusters_that_the_earlier_picks_cover_get_fewer_new_ones():
    case = clustered_case(3)
    labels, stats = case[1], case[2].assign(share=1 / 8, logit=0.0)
    samples, old = samples_of(120), np.arange(60)
    picks = old[labels[old] == labels[0]]  # only of one cluster
    growth = growth_of(old, picks, 0.5, only_new=True)
    rows, _ = coreset_of_clusters((case[0], labels, stats), samples, 0.5, growth)
    new = np.bincount(labels[rows[rows >= 60]], minlength=8)
    assert new[labels[0]] == 0
    assert new.sum() == 30


# --- what is refused -------------------------------------------------------------------------------------------------


def test_numbers_that_clash_are_named():
    samples = samples_of(20)
    lines = conflicts(Constraints(), samples, [], growths=[growth_of(range(10), range(6))])
    assert lines == [
        "selection.keep_earlier: the earlier coreset has 6 samples, but of random, 0.2 of 20 samples is 4; raise "
        "selection.fractions, or set selection.fraction_of to new"
    ]
    growth = growth_of(range(10), [1, 2, 3], only_new=True)
    (line,) = conflicts(Constraints(at_most={"a": 2}), samples, [], growths=[growth])
    assert "at_most.a: 2 samples, but the earlier coreset has 3 of the source a (of random, 0.2 of 10 new" in line
    (line,) = conflicts(Constraints(at_most={"a": 2}, keep=["s12"]), samples, [], growths=[growth])
    assert "but keep and the earlier coreset have 4 of the source a" in line
    (line,) = conflicts(Constraints(exclude=["s2"]), samples, [], growths=[growth])
    assert line.startswith("selection.constraints: the earlier coreset has a sample that exclude names, too")
    (line,) = conflicts(Constraints(), samples, [], growths=[growth_of(range(18), only_new=True)])
    assert line == (
        "selection.fractions: no sample is selected (of random, 0.2 of 2 new samples is 0, with 0 old ones 0); "
        "raise them"
    )


def finished_run(folder, coresets):
    """The manifest and the coresets of a run that another one extends."""
    samples_of(10).to_parquet(folder / "manifest.parquet")
    for (method, fraction), rows in coresets.items():
        path = folder / "coresets" / method / fraction
        path.mkdir(parents=True)
        pd.DataFrame({"sample_id": sorted(ids(rows))}).to_parquet(path / "coreset.parquet")
    return folder


def config_with(folder, **selection):
    values = yaml.safe_load((REPO / "config.yaml").read_text())
    update_config(values, {"dataset": {"extends": folder and str(folder)}})
    values["selection"] |= {"methods": ["coincide", "random"], "fractions": [0.2], **selection}
    return Config.model_validate(values)


def test_what_the_earlier_run_lacks_is_named_with_what_it_has(tmp_path):
    folder = finished_run(tmp_path, {("coincide", "0.2"): range(2), ("full", "1"): range(10)})
    config = config_with(folder, keep_earlier=True, fractions=[0.2, 0.3])
    expected = [
        f"selection.keep_earlier: {folder} has no coreset of {which} (it has coincide at 0.2); select it in that run, "
        "remove it here, or set keep_earlier to false and name a coreset in selection.constraints.keep"
        for which in ("coincide at 0.3", "random at 0.2", "random at 0.3")
    ]
    assert list(growth_problems(config, 100, ())) == expected
    config = config_with(folder, keep_earlier=True, methods=["coincide"])
    assert list(growth_problems(config, 100, ["s5"])) == []
    clash, too_few = growth_problems(config, 9, ["s1", "s5"])
    assert clash == (
        f"selection.constraints.exclude: it names 1 sample of the coreset of coincide at 0.2 of {folder}, which "
        "selection.keep_earlier keeps ('s1'); remove them from it, or set keep_earlier to false"
    )
    assert too_few == (
        f"selection.keep_earlier: the coreset of coincide at 0.2 of {folder} has 2 samples, but 0.2 of 9 samples is 1; "
        "raise selection.fractions, or set selection.fraction_of to new"
    )
    config.selection.fraction_of = "new"
    assert not list(growth_problems(config, 9, ()))


def test_each_coreset_takes_over_that_of_its_method_and_fraction(tmp_path):
    coresets = {("coincide", "0.2"): [0, 1], ("random", "0.2"): [2, 3]}
    config = config_with(finished_run(tmp_path, coresets), keep_earlier=True)
    assert [growth.picks for growth in read_growths(config)] == [ids([0, 1]), ids([2, 3])]
    config.selection.keep_earlier = False
    assert not read_growths(config)
    config.selection.fraction_of = "new"
    growth = read_growth(config, "random", 0.2)
    assert (growth.old, growth.picks, growth.only_new) == (ids(range(10)), frozenset(), True)
    config.dataset.extends = None
    assert read_growth(config, "random", 0.2) is None


def test_bounds_of_a_job_come_with_what_it_takes_over(tmp_path):
    path = tmp_path / "manifest.parquet"
    samples = samples_of(20)
    samples.to_parquet(path)
    bounds = read_bounds(Constraints(), path, samples["sample_id"][::-1], 0.2, growth_of(range(10), [3], only_new=True))
    assert bounds.budget == 3
    assert np.flatnonzero(bounds.earlier).tolist() == [16]  # in the order of the rows
    assert bounds.excluded.sum() == 9
    with pytest.raises(ConstraintError, match="keep_earlier: the earlier coreset has 6"):
        read_bounds(Constraints(), path, samples["sample_id"], 0.2, growth_of(range(10), range(6)))
