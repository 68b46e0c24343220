"""Several runs in one config: which results they share, and which each computes itself."""

import json
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import yaml
from conftest import REPO, Workplace
from snakemake.utils import update_config

from coincide.workflow.config import ConfigError
from coincide.workflow.overlay import check_runs
from coincide.workflow.stages import CORESET, STAGES, Runs, coreset_stage


def values(**extra):
    """The values of the small config, with further keys."""
    common = yaml.safe_load((REPO / "config.yaml").read_text())
    small = yaml.safe_load((REPO / "tests/config/small.yaml").read_text())
    update_config(common, {**small, **extra})
    return common


def make_runs(*settings):
    """The runs of the small config with these entries of `runs`."""
    return Runs(check_runs(values(runs=list(settings)), files=False))


def test_a_config_without_runs_is_a_single_run():
    configs = check_runs(values(), files=False)
    assert list(configs) == ["small"]
    assert Runs(configs).shared("small") == {}


def test_the_settings_of_a_run_overlay_the_rest_of_the_config():
    runs = make_runs({"run": "a"}, {"run": "b", "selection": {"fractions": [0.1]}})
    assert runs.setting("a", "selection.fractions") == [0.2]
    assert runs.setting("b", "selection.fractions") == [0.1]
    assert runs.setting("b", "selection.methods") == ["coincide", "random"]
    assert runs.setting("b", "clustering.k") == 12


@pytest.mark.parametrize(
    ("settings", "first_changed_stage"),
    [
        ({"dataset": {"shards": 3}}, "manifest"),
        ({"reference_model": {"layers": [1]}}, "activations"),
        ({"clustering": {"k": 11}}, "clusters"),
        ({"selection": {"blocks": "all"}}, "transferability"),
        ({"selection": {"temperature": 0.2}}, "shares"),
    ],
)
def test_a_run_computes_the_stage_that_a_setting_changes_and_all_later_ones(settings, first_changed_stage):
    runs = make_runs({"run": "a"}, {"run": "b", **settings})

    def is_changed(stage):
        if stage == CORESET:
            stage = coreset_stage("coincide")
        return stage == first_changed_stage or any(map(is_changed, STAGES[stage]))

    for stage in STAGES:
        if stage in ("method_coreset", "full_coreset", "clip_scores", "difficulty", "check_transfer"):
            continue
        folder = runs.folder("b", stage, method="coincide", group="mini_mix")
        assert folder == ("results/b" if is_changed(stage) else "results/a"), stage
        assert runs.folder("a", stage, method="coincide", group="mini_mix") == "results/a"


def test_stages_that_a_setting_does_not_change_are_shared_per_method():
    runs = make_runs({"run": "a"}, {"run": "b", "selection": {"temperature": 0.2}})
    shared = runs.shared("b")["results/a"]
    assert {"clusters", "method_coreset (random)", "finetune_model (random)", "evaluate_model (full)"} <= set(shared)
    assert not [stage for stage in shared if "coincide" in stage]
    # batch sizes and devices change no result
    operational = make_runs({"run": "a"}, {"run": "b", "reference_model": {"batch_tokens": 300}})
    assert "activations" in operational.shared("b")["results/a"]


def test_samples_depend_on_the_tasks_of_the_evaluation_only_where_leaks_are_dropped():
    other_tasks = {"groups": [{"name": "mini_mix", "tasks": ["mini_mix_counting"]}]}
    for leaks, folder in (("report", "results/a"), ("drop", "results/b"), ("ignore", "results/a")):
        dataset = {"leaks": leaks}
        runs = make_runs({"run": "a", "dataset": dataset}, {"run": "b", "dataset": dataset, "evaluation": other_tasks})
        assert runs.folder("b", "leaks") == "results/b"
        assert {runs.folder("b", stage) for stage in ("shards", "activations", "merge", "clusters")} == {folder}
        assert runs.folder("b", "image_hashes") == "results/a"
    modes = make_runs({"run": "a"}, {"run": "b", "dataset": {"leaks": "drop"}})
    assert modes.folder("b", "leaks") == "results/a"
    assert modes.folder("b", "shards") == "results/b"
    assert {"image_hashes", "leaks", "duplicates"} < set(modes.shared("b")["results/a"])
    reported = make_runs({"run": "a"}, {"run": "b"}).shared("b")["results/a"]
    assert not {"leaks", "screen"} & set(reported)  # no result of the run depends on them


def test_one_message_lists_the_wrong_keys_of_all_runs():
    with pytest.raises(ConfigError) as error:
        make_runs(
            {"run": "a", "clustering": {"kk": 1}}, {"run": "b"}, {"run": "b"}, {"run": "c", "mini": {}}, {"run": "no/"}
        )
    text = str(error.value)
    assert "runs[0] (a): clustering.kk: unknown key" in text
    assert "runs[2].run: duplicate run b" in text
    assert "runs[3].mini: unknown key" in text
    assert "runs[4].run: " in text


@pytest.mark.workflow
def test_runs_share_results_and_a_failed_run_does_not_stop_the_others(finished, tmp_path):
    workplace = Workplace(tmp_path)
    shutil.copytree(finished / "resources", tmp_path / "resources")
    broken = tmp_path / "broken"
    broken.mkdir()
    shutil.copy(finished / "resources/models/reference/config.json", broken)  # a model without weights
    config = tmp_path / "batch.yaml"
    small = yaml.safe_load((REPO / "tests/config/small.yaml").read_text())
    small |= {
        "selection": {"fractions": [0.2], "methods": ["coincide"], "budget": "published"},
        "runs": [
            {"run": "broken", "reference_model": {"name": str(broken)}},
            {"run": "plain"},
            {"run": "sharp", "selection": {"temperature": 0.02}},
        ],
    }
    small["target_model"] = {"full": False, "seeds": [0], "training": {"epochs": 1, "batch_size": 8}}
    config.write_text(yaml.safe_dump(small))
    code, output = workplace.run("--retries", "0", config=config)
    assert code != 0
    outcomes = [line for line in output.splitlines() if line.startswith("results/")]
    assert outcomes[-3].startswith("results/broken: FAILED")
    assert "preflight (preflight)" in outcomes[-3]
    assert outcomes[-2:] == ["results/plain: done", "results/sharp: done"]
    results = tmp_path / "results"
    for run in ("plain", "sharp"):
        assert (results / run / "report.html").exists()
        assert len(pd.read_csv(results / run / "summary.csv")) == 13  # the tasks and their average
    # the first run computes the manifest, the second the other shared results; none is computed twice
    for name, owner in (("samples/manifest.parquet", "broken"), ("shards", "broken"), ("clusters.parquet", "plain")):
        assert [run for run in ("broken", "plain", "sharp") if (results / run / name).exists()] == [owner]
    benchmarks = sorted(results.glob("*/benchmarks/activations/*.tsv"))  # one per job that ran
    assert [path.relative_to(results).parts[0] for path in benchmarks] == ["plain"] * 2  # the check stopped broken
    coreset = "coresets/coincide/0.2/coreset.parquet"
    assert (results / "plain" / coreset).read_bytes() == (finished / "results/small" / coreset).read_bytes()
    assert (results / "sharp" / coreset).read_bytes() != (results / "plain" / coreset).read_bytes()
    page = (results / "sharp" / "report.html").read_text()
    assert "Computed in results/plain, not counted here: activations, merge, clusters" in page
    text = subprocess.run(
        [sys.executable, "-m", "coincide.workflow.status", "results/sharp", "results/broken"],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        check=True,
    ).stdout
    assert re.search(r"computed in results/broken: manifest, .*shards", text)
    assert "FAILED preflight" in text
    # the plan of a run has the jobs that it depends on, and no others
    jobs = {run: json.loads((results / run / "plan.json").read_text())["jobs"] for run in ("plain", "sharp")}
    assert not [j for j in jobs["plain"] if "results/sharp" in j["log"]]
    assert [j for j in jobs["sharp"] if "results/plain/logs/clusters" in j["log"]]


def test_each_seed_of_replicates_is_a_run():
    configs = check_runs(values(replicates=[3, 7]), files=False)
    assert list(configs) == ["small-3", "small-7"]
    seeds = [(c.clustering.seed, c.selection.seed, c.target_model.seeds) for c in configs.values()]
    assert seeds == [(3, 3, [3]), (7, 7, [7])]
    assert [(c.variant, c.replicate) for c in configs.values()] == [("", 0), ("", 1)]


def test_each_run_is_repeated_for_each_seed_of_replicates():
    listed = [{"run": "a"}, {"run": "flat", "selection": {"temperature": 0.5}}]
    configs = check_runs(values(replicates=[3, 7], runs=listed), files=False)
    assert list(configs) == ["a-3", "a-7", "flat-3", "flat-7"]
    assert [(c.variant, c.replicate) for c in configs.values()] == [("", 0), ("", 1), ("flat", 0), ("flat", 1)]
    runs = Runs(configs)
    assert runs.folder("flat-7", "clusters") == "results/a-7"
    assert runs.folder("flat-7", "merge") == "results/a-3"
    assert runs.folder("flat-7", "finetune_model", method="full") == "results/a-3"  # seeds are in its paths


def test_duplicate_replicates_are_an_error():
    with pytest.raises(ConfigError, match="replicates: duplicate value; remove one"):
        check_runs(values(replicates=[1, 1]), files=False)
    with pytest.raises(ConfigError, match="duplicate run a-3"):
        check_runs(values(replicates=[3], runs=[{"run": "a"}, {"run": "a"}]), files=False)


def test_runs_share_the_scores_that_a_method_needs():
    methods = {"methods": ["coincide", "self_filter"]}
    a, b = {"run": "a", "selection": methods}, {"run": "b", "selection": {**methods, "temperature": 0.5}}
    assert {"difficulty", "clip_scores", "method_coreset (self_filter)"} <= set(
        make_runs(a, b).shared("b")["results/a"]
    )
    b["target_model"] = {"training": {"learning_rate": 2e-3}}
    shared = make_runs(a, b).shared("b")["results/a"]
    assert "clip_scores" in shared
    assert not {"difficulty", "method_coreset (self_filter)"} & set(shared)
