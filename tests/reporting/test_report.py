"""The answer, the warnings, the samples and the positions of the report, on small cases; no browser."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from report_run import HOSTILE, SCRIPT, SOURCES, build_run

from coincide.reporting.answer import answer, compare_methods
from coincide.reporting.costs import costs, stage_times
from coincide.reporting.projection import neighbour_map, principal_components, similarity_order
from coincide.reporting.report import SECTIONS, fractions, script_json, write_report
from coincide.reporting.run_warnings import run_warnings
from coincide.reporting.shown_samples import choose_samples, describe_samples, evenly_spaced
from coincide.reporting.summary import relative_performance


def scores(**by_method):
    """Summary of one task; values are the scores of each seed."""
    rows = [
        {"target": "t", "method": method, "fraction": 1.0 if method == "full" else 0.2, "seed": seed, "task": task,
         "metric": "exact_match", "score": score, "higher_is_better": True}
        for method, values in by_method.items()
        for seed, score in enumerate(values)
        for task in ("a", "b")
    ]  # fmt: skip
    return relative_performance(pd.DataFrame(rows))


def test_methods_are_compared_with_random_selection_by_seed():
    table = compare_methods(scores(full=[1.0] * 3, random=[0.5, 0.6, 0.7], coincide=[0.6, 0.8, 0.7]))
    assert table["method"].tolist() == ["full", "coincide", "random"]
    row = table.set_index("method").loc["coincide"]
    assert row["mean"] == pytest.approx(0.7)
    assert 0.599 < row["low"] < row["mean"] < row["high"] < 0.801
    assert row["difference"] == pytest.approx(0.1)  # of 0.1, 0.2 and 0
    assert row["pairs"] == row["models"] == 3
    assert np.isnan(table.set_index("method").loc["random", "difference"])


@pytest.mark.parametrize(
    ("by_method", "level", "words"),
    [
        ({"full": [1, 1, 1], "random": [0.7, 0.71, 0.72], "coincide": [0.97, 0.98, 0.97]}, "yes", "3 finetuned models"),
        (
            {"full": [1, 1, 1], "random": [0.7, 0.71, 0.72], "coincide": [0.8, 0.81, 0.82]},
            "unsure",
            "10.0 points above",
        ),
        ({"full": [1, 1, 1], "random": [0.7, 0.8, 0.9], "coincide": [0.9, 0.7, 0.85]}, "unsure", "81.7%"),
        ({"full": [1, 1, 1], "random": [0.9, 0.91, 0.92], "coincide": [0.8, 0.81, 0.82]}, "no", "10.0 points below"),
        ({"full": [1], "random": [0.9], "coincide": [0.8]}, "no", "one finetuned model (one seed)"),
        ({"full": [1], "random": [0.8], "coincide": [0.8]}, "no", "the same as random selection"),
        ({"full": [1], "random": [0.8], "coincide": [0.99]}, "unsure", "99.0%"),
        ({"full": [1], "coincide": [0.99]}, "unsure", "99.0%"),
        ({"random": [0.8], "coincide": [0.99]}, "unsure", "needs a model that is finetuned on the full data"),
    ],
)
def test_the_answer(by_method, level, words):
    result = answer(compare_methods(scores(**by_method)), "coincide", 0.2)
    assert result.level == level
    assert words in result.reason


def test_every_warning_names_a_fix(tmp_path):
    run = build_run(tmp_path, seeds=1)
    low = run.cluster_stats.assign(**{"budget_0.2": 0})
    without_charts = run.manifest[run.manifest["source"] != "charts"]
    warnings = run_warnings(
        summary=run.summary[~run.summary["method"].isin(["random"])],
        manifest=run.manifest,
        rejected=run.rejected,
        cluster_stats=low,
        coresets={("coincide", "0.2"): without_charts, ("random", "0.2"): without_charts.head(0)},
        learned_above=0.0,
        demo_settings=["a setting is the demo's"],
    )
    texts = [warning.text for warning in warnings]
    assert all(warning.fix for warning in warnings)
    assert "hardly keeps 1 source: charts (0.0%)" in texts[1]
    assert "hardly keeps 12 clusters of 12, with 100.0% of the samples" in texts[2]
    assert "did not learn 1 task from the full data: unlearned" in texts[3]
    assert texts[4:] == [
        "there is no random selection to compare with",
        "1 seed of finetuning: no interval, and differences may be chance",
        "2 samples rejected: missing image",
    ]
    assert warnings[-1].fix == "check dataset.images"


def test_leaks_and_repeated_samples_are_warned_of_unless_they_are_dropped(tmp_path):
    run = build_run(tmp_path, seeds=3)
    ids = run.manifest["sample_id"]
    coresets = {("coincide", "0.2"): pd.DataFrame({"sample_id": ids[:5]}), ("full", "1"): run.manifest}
    tables = {
        "leaks": pd.DataFrame({"sample_id": [ids[4], ids[5], ids[5]], "task": ["a", "a", "b"]}),
        "leak_tasks": pd.DataFrame({"task": ["a", "b"], "failed": [False, True], "problem": ["", "no images"]}),
        "duplicates": pd.DataFrame({"repeats": [None, *ids[:20]]}),
    }

    def warnings(**dropped):
        return {
            warning.fix: warning.text
            for warning in run_warnings(
                summary=run.summary,
                manifest=run.manifest,
                rejected=run.rejected.head(0),
                cluster_stats=run.cluster_stats,
                coresets=coresets,
                learned_above=0.0,
                **tables,
                **dropped,
            )
        }

    reported = warnings()
    assert reported["dataset.leaks: drop"] == (
        "2 samples of the dataset show images or ask questions of the evaluation (1 in coincide at 20%)"
    )
    assert reported["dataset.near_duplicates: drop"].startswith("20 samples repeat ")
    assert reported["see the log of leaks"] == "the task b cannot be compared with the dataset: no images"
    dropped = warnings(dropped=["leaks", "near_duplicates"])
    assert "see the log of leaks" in dropped
    assert not {"dataset.leaks: drop", "dataset.near_duplicates: drop"} & dropped.keys()
    few = run_warnings(
        summary=run.summary,
        manifest=run.manifest,
        rejected=run.rejected.head(0),
        cluster_stats=run.cluster_stats,
        coresets={},
        learned_above=0.0,
        duplicates=tables["duplicates"].head(1),
    )
    assert not [warning for warning in few if "repeat" in warning.text]


def test_device_time_counts_extraction_and_the_devices_of_finetuning(tmp_path):
    run = build_run(tmp_path, seeds=1)
    table = run.summary.assign(run="x", base_method=run.summary["method"])
    cost = costs(table, {"x": run.benchmarks}, devices=8).set_index(["method", "fraction"])
    assert cost.loc[("coincide", 0.2), "device"] == 30 + 8 * 80
    assert cost.loc[("random", 0.2), "device"] == 8 * 80
    assert cost.loc[("full", 1.0), "device"] == 8 * 400
    stages = {stage["stage"]: stage["device_seconds"] for stage in stage_times(run.benchmarks, devices=8)}
    assert stages["activations"] == 30
    assert stages["clusters"] == 0
    assert stages["finetune_model"] == 8 * 400 * (1 + 3 * 0.3)


def test_samples_of_the_map_and_examples_of_clusters():
    samples = pd.DataFrame(
        {"cluster": np.arange(4000) % 10, "similarity": np.arange(4000) / 4000, "kept": np.arange(4000) % 4 == 0}
    )
    rows, mapped = choose_samples(samples, np.arange(10))
    assert mapped == 1500
    assert len(set(rows)) == len(rows) <= 1500 + 40
    assert {3998, 3996} <= set(rows)  # of cluster 8, the nearest that is not kept and the nearest that is
    assert evenly_spaced(10, 3).tolist() == [0, 4, 9]
    assert evenly_spaced(2, 3).tolist() == [0, 1]


def test_thumbnails_are_shared_and_limited(tmp_path, monkeypatch):
    run = build_run(tmp_path, images=2)
    described = describe_samples(run.manifest, np.arange(60), run.dataset, run.images)
    assert len(described["thumbnails"]) == 2
    assert set(described["thumbnail"]) == {-1, 0, 1}
    assert described["question"][0].startswith("<script>")
    assert len(described["question"][50]) == 140
    monkeypatch.setattr("coincide.reporting.shown_samples.THUMBNAIL_BYTES", 1)
    described = describe_samples(run.manifest, np.arange(60), run.dataset, run.images)
    assert len(described["thumbnails"]) == 1
    assert set(described["thumbnail"]) == {-1, 0, -2}


def test_the_map_separates_groups_and_the_order_joins_them():
    rng = np.random.default_rng(0)
    groups = np.repeat([0, 1], 40)
    x = np.eye(6)[groups] + 0.05 * rng.normal(size=(80, 6))
    components, variance = principal_components(x)
    assert components.shape == (80, 6)
    assert variance[0] > 0.9
    positions = neighbour_map(components)
    distances = np.linalg.norm(positions[:, None] - positions, axis=2) + 1e9 * np.eye(80)
    assert (groups[distances.argmin(axis=1)] == groups).all()
    shuffled = rng.permutation(80)
    cosine, order = similarity_order(x[shuffled])
    assert (np.diff(groups[shuffled][order]) != 0).sum() == 1
    assert cosine.shape == (80, 80)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_few_or_equal_rows_have_positions(n):
    components, _ = principal_components(np.ones((n, 3)))
    assert np.isfinite(neighbour_map(components)).all()
    assert neighbour_map(components).shape == (n, 2)
    assert sorted(similarity_order(np.ones((n, 3)))[1]) == list(range(n))


def test_json_in_a_script_tag_ends_nothing():
    text = script_json({"a": HOSTILE + "<!-- \u2028"})
    assert "<" not in text
    assert "\u2028" not in text
    assert json.loads(text) == {"a": HOSTILE + "<!-- \u2028"}


def test_the_page_escapes_text_and_embeds_everything_once(tmp_path):
    run = build_run(tmp_path)
    write_report(tmp_path / "report.html", run)
    page = (tmp_path / "report.html").read_text()
    assert SCRIPT not in page
    assert "<img src=x" not in page
    assert page.count("<script") == 3 + page.count('"<script')  # the data, Plotly and the script of the page
    ids = [section.__name__ for _, section in SECTIONS]
    assert re.findall(r'<section id="(\w+)"', page) == ids
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert data["sources"][data["samples"]["source"][0]] in SOURCES
    assert len(data["samples"]["pca"]) == 2 * 300
    assert page.count(data["samples"]["thumbnails"][0]) == 1
    assert 'href="browser/index.html"' in page
    assert "Yes: it performs almost like the full data" in page


def test_fractions_are_left_out_where_there_is_one(tmp_path):
    assert fractions(build_run(tmp_path / "one", fractions=("0.2",)), {}) is None
    assert fractions(build_run(tmp_path / "two"), {}) == {}


def test_many_clusters_and_samples_are_sampled(tmp_path, monkeypatch):
    monkeypatch.setattr("coincide.reporting.shown_samples.MAP_SAMPLES", 200)
    run = build_run(tmp_path, samples=9000, k=3000, images=3)
    write_report(tmp_path / "report.html", run)
    page = (tmp_path / "report.html").read_text()
    assert "1,500 of 3,000 clusters are drawn" in page
    assert "200 of 9,000 samples, drawn at random" in page
    assert "120 of 3,000 clusters" in page
    assert len(page) < 2_500_000


def test_a_run_without_a_full_data_model_and_without_random_selection_has_a_report(tmp_path):
    run = build_run(tmp_path, methods=("coincide",), fractions=("0.2",), full=False, samples=60, seeds=1, rejected=0)
    write_report(tmp_path / "report.html", run)
    page = (tmp_path / "report.html").read_text()
    assert "Not known: there is no relative performance." in page
    assert "(estimated)" in page  # the time of the full data
    assert "there is no full-data model to compare with" in page
