"""Intervals, paired tests, ranks and areas on small cases."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from coincide.reporting import figures
from coincide.reporting.summary import AVERAGE, unlearned
from coincide.study.comparison import as_text, by_task, collect, costs, interval, intervals, paired, ranks, sign_flips


def summaries(values):
    """Summaries by run from (run, method, fraction) -> relative performance."""
    runs = {}
    for (run, method, fraction), value in values.items():
        for task, shift in ((AVERAGE, 0), ("one", 0.1), ("two", -0.1)):
            runs.setdefault(run, []).append(
                {"target": "t", "method": method, "fraction": fraction, "seed": 0, "task": task, "metric": "m",
                 "score": value / 2, "higher_is_better": True, "relative_performance": value + shift}
            )  # fmt: skip
    return {run: pd.DataFrame(rows) for run, rows in runs.items()}


@pytest.fixture
def table():
    values = {}
    for run, (a, b) in enumerate([(0.8, 0.7), (0.9, 0.7), (0.7, 0.8), (0.8, 0.6)]):
        for fraction, more in ((0.1, 0.0), (0.2, 0.1)):
            values[f"r{run}", "coincide", fraction] = a + more
            values[f"r{run}", "random", fraction] = b + more
        values[f"r{run}", "full", 1.0] = 1.0
    return collect(summaries(values))


def test_intervals_hold_the_mean_and_no_more_than_the_values(table):
    found = intervals(table).set_index(["method", "fraction", "task"])
    row = found.loc["coincide", 0.1, AVERAGE]
    assert row["mean"] == pytest.approx(0.8)
    assert 0.7 <= row["low"] < 0.8 < row["high"] <= 0.9
    assert row["replicates"] == 4
    assert found.loc["coincide", 0.1, "one"]["mean"] == pytest.approx(0.9)
    assert interval([1.0, 1.0, 1.0]) == (1.0, 1.0, 1.0)
    assert np.isnan(interval([1.0, 2.0])[1])
    # as wide as the normal interval of the mean, near enough, where there are many values
    values = np.random.default_rng(0).normal(size=400)
    _, low, high = interval(values)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.05)


def test_paired_tests_worked_by_hand(table):
    tests = paired(table).set_index("fraction")
    # differences 0.1, 0.2, -0.1, 0.2: of 16 flips the sum is 0.4 or more, or -0.4 or less, in 3 and 3
    row = tests.loc[0.1]
    assert row["difference"] == pytest.approx(0.1)
    assert (row["p"], row["least_p"], row["pairs"]) == (6 / 16, 1 / 8, 4)
    assert tests.index.isna().sum() == 1


def test_the_permutation_test_is_that_of_scipy():
    rng = np.random.default_rng(3)
    for n in (3, 8, 12):
        difference = rng.normal(0.4, 1, n)
        expected = stats.permutation_test(
            (difference,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=True
        )
        assert sign_flips(difference) == pytest.approx(expected.pvalue)


def test_ranks_and_areas_worked_by_hand(table):
    found = ranks(table).set_index("method")
    assert found.loc["coincide", "rank"] == pytest.approx(1.25)  # second in one of four runs
    assert found.loc["random", "rank"] == pytest.approx(1.75)
    assert found.loc["coincide", "area"] == pytest.approx(0.85)  # between 0.8 and 0.9


def test_costs_are_of_what_a_method_reads(table, tmp_path):
    def took(name, seconds):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"s\th:m:s\n{seconds}\t0\n")

    took("r0/activations/00000.tsv", 10)
    took("r0/activations/00001.tsv", 20)
    took("r0/merge.tsv", 1)
    for run in ("r0", "r1", "r2", "r3"):
        took(f"{run}/clusters.tsv", 4)
        took(f"{run}/finetune_model/t-full-1-0.tsv", 100)
        for method in ("coincide", "random"):
            took(f"{run}/finetune_model/t-{method}-0.1-0.tsv", 9)
            took(f"{run}/finetune_model/t-{method}-0.2-0.tsv", 19)
        took(f"{run}/method_coreset/random-0.1.tsv", 1)
        took(f"{run}/budget/0.1.tsv", 2)
    folders = {f"r{i}": [tmp_path / f"r{i}", tmp_path / "r0"] for i in range(4)}
    found = costs(table, folders).set_index(["method", "fraction"])
    assert found.loc[("random", 0.1), ["scoring", "selecting", "finetuning", "all"]].tolist() == [0, 1, 9, 10]
    assert found.loc[("coincide", 0.1), ["scoring", "selecting", "all"]].tolist() == [35, 2, 46]
    assert found.loc[("coincide", 0.1), "of_full"] == pytest.approx(0.46)
    tasks = by_task(intervals(table), unlearned(table, 0.0))
    text = as_text(intervals(table), paired(table), ranks(table), found.reset_index(), tasks, unlearned(table, 0.0))
    assert "| random | all | +10.0 (" in text
    assert "| coincide | 0.1 | 35 | 2 | 9 | 46% |" in text
    assert "| coincide 0.2 | 90 | 100 | 80 |" in text  # average and the two tasks
    assert "Not averaged over" not in text


def test_variants_are_methods_of_their_own():
    values, variants = {}, {}
    for i in range(3):
        variants |= {f"base-{i}": ("", i), f"flat-{i}": ("flat", i)}
        values |= {(f"{variant}-{i}", "full", 1.0): 1.0 for variant in ("base", "flat")}
        values |= {(f"base-{i}", "coincide", 0.2): 0.5 + i / 10, (f"base-{i}", "random", 0.2): 0.4 + i / 10}
        values[f"flat-{i}", "coincide", 0.2] = 0.7 + i / 10
    table = collect(summaries(values), variants)
    found = intervals(table).set_index(["method", "task"])["mean"]
    assert found["coincide", AVERAGE] == pytest.approx(0.6)
    assert found["coincide (flat)", AVERAGE] == pytest.approx(0.8)
    # pairs are of the same replicate
    tests = paired(table).set_index("method")
    assert tests.loc["coincide (flat)", "difference"] == pytest.approx(-0.2)
    assert tests.loc["coincide (flat)", "low"] == pytest.approx(-0.2)
    assert set(ranks(table)["method"]) == {"coincide", "coincide (flat)", "random"}
    cost = costs(table, {run: [] for run in table["run"].unique()})
    tasks = by_task(intervals(table), unlearned(table, 0.0))
    text = as_text(intervals(table), paired(table), ranks(table), cost, tasks, unlearned(table, 0.0))
    assert text.startswith("Relative performance, mean of 3 replicates")  # though both variants train on everything
    assert set(cost["method"]) == {"coincide", "coincide (flat)", "random", "full"}


def test_tasks_the_full_model_did_not_learn_count_in_no_replicate():
    values = {(f"r{i}", "coincide", 0.2): 0.5 for i in range(3)}
    values |= {(f"r{i}", "full", 1.0): 1.0 for i in range(3)}
    by_run = summaries(values)
    for i, table in enumerate(by_run.values()):  # "two" is learned by the first replicate alone: 0.1 on average
        table.loc[(table["method"] == "full") & (table["task"] == "two"), "score"] = 0.3 if i == 0 else 0.0
    table = collect(by_run, learned_above=0.2)
    average = table[(table["task"] == AVERAGE) & (table["method"] == "coincide")]
    assert average["relative_performance"].tolist() == pytest.approx([0.6, 0.6, 0.6])  # of "one" alone
    left_out = unlearned(table, 0.2)
    assert left_out.to_dict() == {("t", "two"): pytest.approx(0.1)}
    found = intervals(table)
    cost = costs(table, {run: [] for run in by_run})
    text = as_text(found, paired(table), ranks(table), cost, by_task(found, left_out), left_out)
    assert "did not learn them (its score): two (0.10)." in text
    assert "| two * | 40 |" in text  # more tasks than methods: tasks are the rows
    expected = {"average": 0.6, "one": 0.6, "two *": 0.4}
    assert by_task(found, left_out)["coincide 0.2"].to_dict() == pytest.approx(expected)


def words_in(path):
    """Labels of a figure, which are drawn as paths and named in comments."""
    return {line.strip()[4:-3].strip() for line in path.read_text().splitlines() if line.strip().startswith("<!--")}


def test_the_pictures_name_every_method(table, tmp_path):
    found, cost = intervals(table), costs(table, {run: [] for run in table["run"].unique()}).assign(of_full=0.5)
    figures.curves(found, tmp_path / "curves.svg")
    figures.curves(found[found["fraction"] != 0.1], tmp_path / "one.svg")
    figures.pareto(found, cost, tmp_path / "pareto.svg")
    for name in ("curves", "one", "pareto"):
        assert {"coincide", "random"} <= words_in(tmp_path / f"{name}.svg"), name
    assert "10%" in words_in(tmp_path / "pareto.svg")
    figures.tasks(by_task(found, unlearned(table, 0.0)), tmp_path / "tasks.svg")
    assert {"coincide 0.1", "one", "two", "average", "90"} <= words_in(tmp_path / "tasks.svg")
    pairs = pd.DataFrame({"cosine": [0.1, 0.5, 0.9], "gain": [0.0, 0.1, 0.3]})
    correlated = {"r": 0.98, "low": 0.9, "high": 1.0, "rho": 1.0, "pairs": 3}
    figures.transfer(pairs, correlated, tmp_path / "transfer.svg")
    assert "r = 0.98 (0.90 to 1.00), 3 pairs" in words_in(tmp_path / "transfer.svg")
