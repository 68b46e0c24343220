"""The target pilot: the runs that it derives from a config, its checks, and one small run."""

import json

import pandas as pd
import pytest
import yaml
from conftest import REPO, Workplace
from snakemake.utils import update_config

from coincide.workflow.config import ConfigError
from coincide.workflow.overlay import check_runs
from coincide.workflow.pilot import check_pilot
from coincide.workflow.stages import Runs

DEFAULT = yaml.safe_load((REPO / "config.yaml").read_text())
DEFAULT["selection"]["budget"] = "published"
SMALL = yaml.safe_load((REPO / "tests/config/small.yaml").read_text())
PILOT = {
    "samples": 300,
    "holdout": 0.2,
    "fraction": 0.3,
    "replicates": [0, 1],
    "methods": ["coincide", "random"],
    "variants": {"even": {"selection": {"budget": "even"}}},
    "batch_size": 4,
}


def pilot_of(overrides, *, files=False):
    values = json.loads(json.dumps(DEFAULT))
    update_config(values, overrides)
    return check_pilot(values, check_runs(values, files=False, overrides=overrides), files=files, overrides=overrides)


def problems_of(pilot, monkeypatch):
    monkeypatch.chdir(REPO)
    with pytest.raises(ConfigError) as error:
        pilot_of({"pilot": pilot}, files=True)
    return error.value.problems


def test_the_runs_of_a_pilot():
    constraints = {"at_least": {"a": 0.1}}
    configs = pilot_of({"pilot": PILOT, "selection": {"constraints": constraints}, "clustering": {"k": 9}})
    assert list(configs) == [f"demo-pilot{variant}-{seed}" for variant in ("", "-even") for seed in (0, 1)]
    base, even = configs["demo-pilot-1"], configs["demo-pilot-even-1"]
    assert (base.selection.methods, even.selection.methods) == (["coincide", "random"], ["coincide"])
    assert (base.selection.budget, even.selection.budget) == ("published", "even")
    assert base.target_model.name == base.reference_model.name == DEFAULT["reference_model"]["name"]
    assert base.target_model.training.learning_rate == DEFAULT["target_model"]["training"]["learning_rate"]
    assert (base.dataset.sample, base.evaluation.holdout, base.clustering.k) == (300, 0.2, None)
    assert not base.selection.constraints.is_set
    assert not base.target_model.full


def test_a_pilot_with_the_target_model():
    training = {"batch_size": 8, "processes": 2}
    pilot = {**PILOT, "model": "target", "learning_rate": 1e-5}
    configs = pilot_of({"pilot": pilot, "target_model": {"label": "big", "training": training}})
    target = configs["demo-pilot-1"].target_model
    assert (target.name, target.label, target.full) == (DEFAULT["target_model"]["name"], "big", False)
    assert (target.training.processes, target.training.batch_size, target.training.learning_rate) == (2, 4, 1e-5)
    assert target.training.freeze == ["vision_tower"]
    assert target.seeds == [1]


def test_runs_of_a_pilot_share_activations_and_nothing_with_the_runs_of_the_config():
    main = check_runs(json.loads(json.dumps(DEFAULT)), files=False)
    runs = Runs(main, pilot_of({"pilot": PILOT}))
    assert list(runs) == ["demo"]
    for run in runs.pilot:
        assert runs.folder(run, "merge") == "results/demo-pilot-0"
        assert runs.folder(run, "preflight") == "results/demo-pilot-0"
    assert runs.folder("demo-pilot-even-1", "clusters") == "results/demo-pilot-1"
    assert runs.folder("demo", "preflight") == "results/demo"


def test_all_methods_are_compared_by_default_with_what_they_need():
    base = next(iter(pilot_of({}).values()))
    assert {"coincide", "random", "clip_score", "visnec", "dics"} <= set(base.selection.methods)
    assert base.reference_model.sample_metrics
    own = {"dataset": {"annotations": "/data/a.parquet"}}
    base = next(iter(pilot_of(own).values()))
    assert not {"clip_score", "self_filter"} & set(base.selection.methods)
    base = next(iter(pilot_of({**own, "clip_model": {"name": "org/clip"}}).values()))
    assert "clip_score" in base.selection.methods


def test_a_variant_with_the_settings_of_the_config_is_left_out():
    names = {run.rsplit("-", 1)[0] for run in pilot_of({})}
    assert names == {"demo-pilot", *(f"demo-pilot-{name}" for name in ("even", "size", "tau-0.02", "tau-0.5"))}
    names = {run.rsplit("-", 1)[0] for run in pilot_of({"selection": {"budget": "even"}})}
    assert "demo-pilot-published" in names
    assert "demo-pilot-even" not in names


def test_every_problem_is_found_before_the_first_job(monkeypatch):
    (few,) = problems_of({**PILOT, "samples": 90, "holdout": 0.1, "batch_size": 1}, monkeypatch)
    assert few.startswith("pilot.holdout: 0.1 of 90 samples are 9 questions, fewer than 20; raise pilot.holdout or")
    (clusters,) = problems_of({**PILOT, "k": 100}, monkeypatch)
    assert clusters.startswith("pilot.fraction: 0.3 of 240 samples are 72, fewer than the 100 clusters")
    (steps,) = problems_of({**PILOT, "batch_size": 8}, monkeypatch)
    assert steps.startswith("pilot.batch_size: 72 samples of a coreset in batches of 8 are 9 steps, fewer than 10")
    lines = problems_of({**PILOT, "methods": ["coincide", "xyz"], "variants": {"v": {"dataset": {}}}}, monkeypatch)
    sections = "selection, clustering, reference_model"
    assert [line.split(";")[0] for line in lines] == [
        "pilot.methods: unknown method 'xyz'",
        "pilot.methods: methods are compared with random choice",
        f"pilot.variants.v: only the sections {sections} may differ from those of random choice",
    ]


@pytest.mark.workflow
def test_a_pilot_answers(finished, tmp_path):
    workplace = Workplace(tmp_path)
    (tmp_path / "resources").symlink_to(finished / "resources")
    config = tmp_path / "pilot.yaml"
    config.write_text(yaml.safe_dump({**SMALL, "pilot": PILOT}))
    code, output = workplace.run("pilot", config=config)
    assert code == 0, output
    assert "random choice" in output
    table = pd.read_csv(workplace / "results/small-pilot/pilot.csv")
    assert set(table["method"]) == {"coincide", "coincide (even)"}
    assert (table["replicates"] == 2).all()
    assert (table["seconds"] > 0).all()
    summaries = [pd.read_parquet(workplace / f"results/small-pilot-{seed}/summary.parquet") for seed in (0, 1)]
    differences = []
    for summary in summaries:
        score = summary[summary["task"] != "average"].groupby("method")["score"].mean()
        differences.append(100 * (score["coincide"] - score["random"]))
    margin = table.set_index("method").loc["coincide", "margin"]
    assert margin == pytest.approx(sum(differences) / 2)
    assert len(list((workplace / "results").glob("*/activations/shard-00000.parquet"))) == 1
    rejected = pd.read_parquet(workplace / "results/small-pilot-0/samples/rejected.parquet")
    assert (rejected["reason"] == "not sampled").sum() == 660 - 300
    assert not (workplace / "results/small").exists()
