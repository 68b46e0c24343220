"""Relative performance on small cases worked by hand, and the closing text."""

import json

import numpy as np
import pandas as pd
import pytest

from coincide.base.sections import Constraints
from coincide.dataset.samples import Reason, RejectedSample, rejected_table
from coincide.reporting.costs import stage_times
from coincide.reporting.summary import (
    as_text,
    constraint_table,
    headline_table,
    read_results,
    relative_performance,
    short_names,
    underrepresented_sources,
)

MANIFEST = pd.DataFrame({"sample_id": list("abcdefghi"), "source": ["charts"] * 7 + ["signs"] * 2})


def results(folder, method, fraction, scores, higher=True, metrics=()):
    metrics = dict(metrics)
    path = folder / f"target/{method}/{fraction}/0/group/results.json"
    path.parent.mkdir(parents=True)
    names = {task: metrics.get(task, "exact_match") for task in scores}
    report = {
        "results": {task: {"alias": task, f"{names[task]},none": score} for task, score in scores.items()},
        "configs": {
            task: {"metric_list": [{"metric": name, "higher_is_better": higher}]} for task, name in names.items()
        },
        "group_subtasks": {task: [] for task in scores} | {"all": list(scores)},
    }
    report["results"]["all"] = {"alias": "all"}
    path.write_text(json.dumps(report))
    return path


@pytest.fixture
def summary(tmp_path):
    paths = [
        results(tmp_path, "full", "1", {"a": 0.8, "b": 0.5, "c": 0.0}),
        results(tmp_path, "coincide", "0.2", {"a": 0.6, "b": 0.5, "c": 0.1}),
        results(tmp_path, "random", "0.2", {"a": 0.4, "b": 0.25, "c": 0.0}),
    ]
    return relative_performance(read_results(paths))


def test_relative_performance_worked_by_hand(summary):
    assert len(summary) == 12
    row = summary.set_index(["method", "task"])
    assert row.loc[("coincide", "a"), "relative_performance"] == pytest.approx(0.75)
    assert np.isnan(row.loc[("coincide", "c"), "relative_performance"])  # nothing to divide by
    assert row.loc[("coincide", "average"), "relative_performance"] == pytest.approx((0.75 + 1) / 2)
    assert row.loc[("coincide", "average"), "score"] == pytest.approx(0.4)
    assert row.loc[("random", "average"), "relative_performance"] == pytest.approx(0.5)
    assert row.loc[("full", "average"), "relative_performance"] == pytest.approx(1)


def test_tasks_that_the_full_data_model_did_not_learn_are_left_out_of_the_average(tmp_path):
    paths = [
        results(tmp_path, "full", "1", {"a": 0.8, "b": 0.05}),
        results(tmp_path, "coincide", "0.2", {"a": 0.6, "b": 0.15}),
    ]
    for above, expected in ((0.0, (0.75 + 3) / 2), (0.05, 0.75)):
        table = relative_performance(read_results(paths), learned_above=above).set_index(["method", "task"])
        assert table.loc[("coincide", "average"), "relative_performance"] == pytest.approx(expected)
        assert table.loc[("coincide", "b"), "relative_performance"] == pytest.approx(3)
        assert table.loc[("coincide", "average"), "score"] == pytest.approx(0.375)


def test_scores_of_different_metrics_are_not_averaged(tmp_path):
    metrics = {"mme": "mme_perception_score"}
    paths = [
        results(tmp_path, "full", "1", {"a": 0.8, "mme": 1500.0}, metrics=metrics),
        results(tmp_path, "coincide", "0.2", {"a": 0.6, "mme": 1200.0}, metrics=metrics),
    ]
    table = relative_performance(read_results(paths))
    row = table.set_index(["method", "task"])
    assert np.isnan(row.loc[("coincide", "average"), "score"])
    assert row.loc[("coincide", "average"), "relative_performance"] == pytest.approx((0.75 + 0.8) / 2)
    assert row.loc[("coincide", "mme"), "score"] == 1200
    text = as_text(table, rejected_table([]), MANIFEST, {}, clusters="", report="r", failures=["Warning: no judge"])
    assert "| coincide | 20.0% | 77.5% |\n" in text
    assert "average score" not in text
    assert "\nWarning: no judge\n" in text
    assert "average" not in headline_table(table)


def test_the_ratio_is_inverted_where_lower_is_better(tmp_path):
    paths = [
        results(tmp_path, "full", "1", {"a": 2.0}, higher=False),
        results(tmp_path, "coincide", "0.2", {"a": 4.0}, higher=False),
    ]
    table = relative_performance(read_results(paths)).set_index(["method", "task"])
    assert table.loc[("coincide", "a"), "relative_performance"] == pytest.approx(0.5)


def test_without_a_full_data_model_there_is_no_relative_performance(tmp_path):
    table = relative_performance(read_results([results(tmp_path, "coincide", "0.2", {"a": 0.5})]))
    assert table["relative_performance"].isna().all()
    assert "| coincide | 20.0% | – | 0.500 |" in as_text(
        table, rejected_table([]), MANIFEST, {}, clusters="", report="r"
    )


def test_underrepresented_sources_worked_by_hand():
    manifest = pd.DataFrame({"sample_id": [str(i) for i in range(40)], "source": ["a"] * 20 + ["b"] * 12 + ["c"] * 8})
    kept = manifest.iloc[[*range(15), *range(20, 23), 32, 33]]  # 20 of 40: 15/20, 3/12, 2/8
    assert underrepresented_sources(manifest, kept).empty
    kept = manifest.iloc[[*range(17), *range(20, 23)]]  # 17/20, 3/12, 0/8; an eighth is the limit
    assert underrepresented_sources(manifest, kept).to_dict() == {"c": 0}
    kept = manifest.iloc[[*range(18), 20, 32]]  # 18/20, 1/12, 1/8, which is at the limit
    assert underrepresented_sources(manifest, kept).to_dict() == {"b": pytest.approx(1 / 12)}
    single = pd.DataFrame({"sample_id": ["x"], "source": ["d"]})  # half a sample is expected, so none is no sign
    manifest = pd.concat([manifest, single], ignore_index=True)
    assert underrepresented_sources(manifest, kept).to_dict() == {"b": pytest.approx(1 / 12)}


def test_the_closing_text_has_the_table_and_counts(summary):
    rejected = rejected_table([RejectedSample("x", 3, Reason.MISSING_IMAGE, "gone")])
    kept = MANIFEST.iloc[[0, 1, 2, 3, 6]]
    text = as_text(
        summary,
        rejected,
        MANIFEST,
        {("coincide", "0.5"): kept, ("full", "1"): MANIFEST},
        clusters="Clusters: 7 of them.",
        report="results/x/report.html",
    )
    assert "Clusters: 7 of them." in text
    assert "| coincide | 20.0% | 87.5% | 0.400 |" in text
    assert text.index("full") < text.index("coincide") < text.index("random")
    assert "coincide at 50.0% keeps few samples of these sources: signs (0.0%)." in text
    assert "set selection.constraints.at_least for these sources" in text
    assert "Constraints" not in text
    assert "full at" not in text
    assert "9 usable samples, 1 rejected." in text
    assert "- 1 × missing image" in text
    assert headline_table(summary).index.tolist() == [("full", 1.0), ("coincide", 0.2), ("random", 0.2)]


def test_the_closing_text_says_what_constraints_asked_and_got(summary):
    samples = MANIFEST.assign(n_images=[1] * 8 + [0])
    constraints = Constraints(at_least={"signs": 0.3}, at_most={"charts": 4}, keep=["i"])
    coresets = {
        ("coincide", "0.5"): samples.iloc[[0, 1, 7, 8]],
        ("random", "0.5"): samples.iloc[[2, 3, 7, 8]],
        ("coincide", "0.2"): samples.iloc[[8]],
        ("random", "0.2"): samples.iloc[[8]],
        ("full", "1"): samples,
    }
    table = constraint_table(constraints, samples, coresets)
    assert list(table) == ["data kept", "constraint", "asked", "coincide", "random"]
    text = as_text(summary, rejected_table([]), samples, coresets, clusters="", report="r", constraints=table)
    assert "| 50.0% | at least, signs | 2 | 2 | 2 |" in text
    assert "| 50.0% | at most, charts | 4 | 2 | 2 |" in text
    assert "| 20.0% | at least, signs | 1 | 1 | 1 |" in text
    assert "| 20.0% | keep | 1 | 1 | 1 |" in text


def test_stage_times_add_up_over_jobs(tmp_path):
    (tmp_path / "activations").mkdir()
    for i, seconds in enumerate([3, 5]):
        (tmp_path / f"activations/{i}.tsv").write_text(f"s\tmax_rss\n{seconds}\t{100 + i}\n")
    (tmp_path / "merge.tsv").write_text("s\tmax_rss\n2\t-\n")
    first, second = stage_times([tmp_path])
    assert (first["stage"], first["jobs"], first["seconds"], first["longest"], first["memory"]) == (
        "activations",
        2,
        8,
        5,
        101,
    )
    assert second["share"] == pytest.approx(0.2)


def test_short_names_drop_the_common_prefix():
    assert short_names(["mini_mix_digits_add", "mini_mix_digits_read"]) == ["add", "read"]
    assert short_names(["even_mix_chart", "even_mix_text_only"]) == ["chart", "text only"]
    assert short_names(["gqa", "vqav2_val"]) == ["gqa", "vqav2 val"]
    assert short_names(["mini_mix_pair"]) == ["mini mix pair"]
