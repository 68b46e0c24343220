"""Intervals, paired tests, ranks and areas on small cases."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from coincide.base.errors import UserError
from coincide.reporting import figures
from coincide.reporting.costs import costs
from coincide.reporting.summary import AVERAGE, unlearned_tasks
from coincide.study.comparison import (
    as_text,
    combine_summaries,
    interval,
    intervals,
    paired_tests,
    ranks,
    sign_flip_p_value,
    task_table,
)


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
    return combine_summaries(summaries(values))


def test_intervals_contain_the_mean_and_stay_within_the_values(table):
    by_key = intervals(table).set_index(["method", "fraction", "task"])
    row = by_key.loc["coincide", 0.1, AVERAGE]
    assert row["mean"] == pytest.approx(0.8)
    assert 0.7 <= row["low"] < 0.8 < row["high"] <= 0.9
    assert row["replicates"] == 4
    assert by_key.loc["coincide", 0.1, "one"]["mean"] == pytest.approx(0.9)
    assert interval([1.0, 1.0, 1.0]) == (1.0, 1.0, 1.0)
    assert np.isnan(interval([1.0, 2.0])[1])
    # with many values, about as wide as the normal interval of the mean
    values = np.random.default_rng(0).normal(size=400)
    _, low, high = interval(values)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.05)


def test_paired_tests_worked_by_hand(table):
    tests = paired_tests(table).set_index("fraction")
    # differences 0.1, 0.2, -0.1, 0.2: in 6 of 16 sign patterns the absolute sum is at least 0.4
    row = tests.loc[0.1]
    assert row["difference"] == pytest.approx(0.1)
    assert (row["p"], row["least_p"], row["pairs"]) == (6 / 16, 1 / 8, 4)
    assert tests.index.isna().sum() == 1


def test_the_p_value_is_that_of_the_two_sided_test_of_scipy():
    rng = np.random.default_rng(3)
    for n in (3, 8, 12):
        difference = rng.normal(0.4, 1, n)
        expected = stats.permutation_test(
            (difference,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=True
        )
        assert sign_flip_p_value(difference) == pytest.approx(expected.pvalue)


def enumerated_p_value(difference):
    """p over all sign patterns: how often the absolute sum is at least the observed one."""
    flips = np.array(list(product((1, -1), repeat=len(difference))))
    return float((np.abs(flips @ difference) >= abs(difference.sum()) - 1e-12).mean())


def test_the_p_value_is_that_of_the_enumeration_of_all_sign_patterns():
    rng = np.random.default_rng(4)
    for n in range(1, 11):
        for difference in (
            rng.normal(0.4, 1, n),
            rng.integers(-3, 4, n) / 10,  # ties, and sums of zero up to rounding
            np.zeros(n),
            np.full(n, 0.1),
        ):
            assert sign_flip_p_value(difference) == enumerated_p_value(difference), difference
    difference = rng.normal(0.2, 1, 14)  # the largest number of pairs that is enumerated
    assert sign_flip_p_value(difference) == enumerated_p_value(difference)
    assert np.isnan(sign_flip_p_value(np.array([])))


def test_the_p_value_of_many_pairs_is_estimated_with_a_fixed_seed():
    difference = np.random.default_rng(5).normal(0.4, 1, 16)
    assert sign_flip_p_value(difference) == sign_flip_p_value(difference)
    assert sign_flip_p_value(difference) == pytest.approx(enumerated_p_value(difference), abs=0.01)


def test_ranks_and_areas_worked_by_hand(table):
    ranking = ranks(table).set_index("method")
    assert ranking.loc["coincide", "rank"] == pytest.approx(1.25)  # second in one of four runs
    assert ranking.loc["random", "rank"] == pytest.approx(1.75)
    assert ranking.loc["coincide", "area"] == pytest.approx(0.85)  # between 0.8 and 0.9


def test_costs_count_the_jobs_that_a_method_depends_on(table, tmp_path):
    def write_benchmark(name, seconds):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"s\th:m:s\n{seconds}\t0\n")

    write_benchmark("r0/activations/00000.tsv", 10)
    write_benchmark("r0/activations/00001.tsv", 20)
    write_benchmark("r0/merge.tsv", 1)
    for run in ("r0", "r1", "r2", "r3"):
        write_benchmark(f"{run}/clusters.tsv", 4)
        write_benchmark(f"{run}/finetune_model/t-full-1-0.tsv", 100)
        for method in ("coincide", "random"):
            write_benchmark(f"{run}/finetune_model/t-{method}-0.1-0.tsv", 9)
            write_benchmark(f"{run}/finetune_model/t-{method}-0.2-0.tsv", 19)
        write_benchmark(f"{run}/method_coreset/random-0.1.tsv", 1)
        write_benchmark(f"{run}/budget/0.1.tsv", 2)
    folders = {f"r{i}": [tmp_path / f"r{i}", tmp_path / "r0"] for i in range(4)}
    cost = costs(table, folders).set_index(["method", "fraction"])
    assert cost.loc[("random", 0.1), ["scoring", "selecting", "finetuning", "all"]].tolist() == [0, 1, 9, 10]
    assert cost.loc[("coincide", 0.1), ["scoring", "selecting", "all"]].tolist() == [35, 2, 46]
    assert cost.loc[("coincide", 0.1), "of_full"] == pytest.approx(0.46)
    tasks = task_table(intervals(table), unlearned_tasks(table, 0.0))
    text = as_text(
        intervals(table), paired_tests(table), ranks(table), cost.reset_index(), tasks, unlearned_tasks(table, 0.0)
    )
    assert "| random | all | +10.0 (" in text
    assert "| coincide | 0.1 | 35 | 2 | 9 | 46% |" in text
    assert "| coincide 0.2 | 90 | 100 | 80 |" in text  # average and the two tasks
    assert "Left out of the average" not in text


def test_variants_are_separate_methods():
    values, variants = {}, {}
    for i in range(3):
        variants |= {f"base-{i}": ("", i), f"flat-{i}": ("flat", i)}
        values |= {(f"{variant}-{i}", "full", 1.0): 1.0 for variant in ("base", "flat")}
        values |= {(f"base-{i}", "coincide", 0.2): 0.5 + i / 10, (f"base-{i}", "random", 0.2): 0.4 + i / 10}
        values[f"flat-{i}", "coincide", 0.2] = 0.7 + i / 10
    table = combine_summaries(summaries(values), variants)
    mean = intervals(table).set_index(["method", "task"])["mean"]
    assert mean["coincide", AVERAGE] == pytest.approx(0.6)
    assert mean["coincide (flat)", AVERAGE] == pytest.approx(0.8)
    # pairs are of the same replicate
    tests = paired_tests(table).set_index("method")
    assert tests.loc["coincide (flat)", "difference"] == pytest.approx(-0.2)
    assert tests.loc["coincide (flat)", "low"] == pytest.approx(-0.2)
    assert set(ranks(table)["method"]) == {"coincide", "coincide (flat)", "random"}
    cost = costs(table, {run: [] for run in table["run"].unique()})
    tasks = task_table(intervals(table), unlearned_tasks(table, 0.0))
    text = as_text(intervals(table), paired_tests(table), ranks(table), cost, tasks, unlearned_tasks(table, 0.0))
    assert text.startswith("Relative performance, mean of 3 replicates")  # though both variants train on everything
    assert set(cost["method"]) == {"coincide", "coincide (flat)", "random", "full"}


def test_tasks_that_were_not_learned_on_average_count_in_no_replicate():
    values = {(f"r{i}", "coincide", 0.2): 0.5 for i in range(3)}
    values |= {(f"r{i}", "full", 1.0): 1.0 for i in range(3)}
    by_run = summaries(values)
    for i, table in enumerate(by_run.values()):  # "two" is learned only by the first replicate: 0.1 on average
        table.loc[(table["method"] == "full") & (table["task"] == "two"), "score"] = 0.3 if i == 0 else 0.0
    table = combine_summaries(by_run, learned_above=0.2)
    average = table[(table["task"] == AVERAGE) & (table["method"] == "coincide")]
    assert average["relative_performance"].tolist() == pytest.approx([0.6, 0.6, 0.6])  # of "one" only
    unlearned = unlearned_tasks(table, 0.2)
    assert unlearned.to_dict() == {("t", "two"): pytest.approx(0.1)}
    performance = intervals(table)
    cost = costs(table, {run: [] for run in by_run})
    text = as_text(performance, paired_tests(table), ranks(table), cost, task_table(performance, unlearned), unlearned)
    assert "did not learn them (its score): two (0.10)." in text
    assert "| two * | 40 |" in text  # more tasks than methods: tasks are the rows
    expected = {"average": 0.6, "one": 0.6, "two *": 0.4}
    assert task_table(performance, unlearned)["coincide 0.2"].to_dict() == pytest.approx(expected)


def test_runs_without_full_data_models_cannot_be_compared():
    by_run = summaries({(f"r{i}", "coincide", 0.2): 0.5 for i in range(3)})
    by_run = {run: table.assign(relative_performance=np.nan) for run, table in by_run.items()}
    with pytest.raises(UserError, match=r"none of the runs r0, r1, r2 has a full-data model; set target_model\.full"):
        combine_summaries(by_run)


def test_runs_whose_full_data_models_learned_no_task_cannot_be_compared():
    values = {(f"r{i}", "coincide", 0.2): 0.5 for i in range(3)}
    values |= {(f"r{i}", "full", 1.0): 1.0 for i in range(3)}  # scores of 0.5 on both tasks
    with pytest.raises(UserError, match=r"learned_above \(0\.9\) on any task"):
        combine_summaries(summaries(values), learned_above=0.9)


def labels_of(path):
    """Labels of an SVG figure: drawn as paths, with their text in comments."""
    return {line.strip()[4:-3].strip() for line in path.read_text().splitlines() if line.strip().startswith("<!--")}


def test_the_figures_name_every_method(table, tmp_path):
    performance, cost = intervals(table), costs(table, {run: [] for run in table["run"].unique()}).assign(of_full=0.5)
    figures.draw_curves(performance, tmp_path / "curves.svg")
    figures.draw_curves(performance[performance["fraction"] != 0.1], tmp_path / "single_fraction.svg")
    figures.draw_pareto(performance, cost, tmp_path / "pareto.svg")
    for name in ("curves", "single_fraction", "pareto"):
        assert {"coincide", "random"} <= labels_of(tmp_path / f"{name}.svg"), name
    assert any(label.startswith("(points by size: ") and "10%" in label for label in labels_of(tmp_path / "pareto.svg"))
    figures.draw_tasks(task_table(performance, unlearned_tasks(table, 0.0)), tmp_path / "tasks.svg")
    assert {"coincide 0.1", "one", "two", "average", "90"} <= labels_of(tmp_path / "tasks.svg")
    pairs = pd.DataFrame({"cosine": [0.1, 0.5, 0.9], "gain": [0.0, 0.1, 0.3]})
    correlated = {"r": 0.98, "low": 0.9, "high": 1.0, "rho": 1.0, "pairs": 3}
    figures.draw_transfer(pairs, correlated, tmp_path / "transfer.svg")
    assert "r = 0.98 (0.90 to 1.00), 3 pairs" in labels_of(tmp_path / "transfer.svg")
