"""Runs on data of one's own: what an overlay inherits, unusual paths, and too many rejected samples."""

import json
import shutil

import pandas as pd
import pytest
import yaml
from conftest import REPO, Workplace, make_record
from PIL import Image

from coincide.clustering.kmeans import recommended_clusters
from coincide.workflow.config import ConfigError, check_config, demo_settings
from coincide.workflow.overlay import check_runs

DEFAULT = yaml.safe_load((REPO / "config.yaml").read_text())
ODD = "data #1 [b] *é"  # characters that Snakemake, globs and URLs give a meaning


def merged(overrides):
    """The config as Snakemake merges it."""
    config = json.loads(json.dumps(DEFAULT))
    for section, settings in overrides.items():
        if isinstance(settings, dict):
            config[section].update(settings)
        else:
            config[section] = settings
    return config


def images_of(overrides):
    return check_runs(merged(overrides), files=False, overrides=overrides)


def test_an_overlay_that_sets_annotations_does_not_inherit_the_images():
    assert images_of({"dataset": {"annotations": "/data/hub"}})["demo"].dataset.images == "/data"
    own = {"annotations": "/data/a.parquet", "images": "/elsewhere"}
    assert images_of({"dataset": own})["demo"].dataset.image_folders == ["/elsewhere", "/data"]
    assert images_of({"dataset": {"shards": 2}})["demo"].dataset.images == DEFAULT["dataset"]["images"]
    assert images_of({})["demo"].dataset.images == DEFAULT["dataset"]["images"]


def test_a_run_that_sets_annotations_does_not_inherit_the_images():
    runs = [{"run": "a"}, {"run": "b", "dataset": {"annotations": "/data/a.json"}}]
    configs = images_of({"runs": runs})
    assert configs["a"].dataset.images == DEFAULT["dataset"]["images"]
    assert configs["b"].dataset.images == "/data"


def test_an_overlay_that_sets_annotations_does_not_inherit_the_number_of_clusters():
    own = {"annotations": "/data/a.parquet"}
    assert images_of({"dataset": own})["demo"].clustering.k is None
    assert images_of({"dataset": own, "clustering": {"k": 7}})["demo"].clustering.k == 7
    assert images_of({"dataset": own, "clustering": {"seed": 7}})["demo"].clustering.k is None
    assert images_of({"clustering": {"seed": 7}})["demo"].clustering.k == DEFAULT["clustering"]["k"]


@pytest.mark.parametrize(("samples", "clusters"), [(1, 1), (98, 1), (100, 2), (21_000, 318), (665_298, 10_080)])
def test_the_recommended_number_of_clusters_is_one_per_66_samples(samples, clusters):
    assert recommended_clusters(samples) == clusters


def test_what_is_still_the_demos_is_named():
    assert demo_settings(images_of({})["demo"]) == []
    own = {"dataset": {"annotations": "/data/a.json"}}
    reference, target, tasks = demo_settings(images_of(own)["demo"])
    assert reference.startswith("reference_model.name is the demo's toy model")
    assert target.startswith("target_model.name is the demo's toy model")
    assert "mini_mix" in tasks
    models = {"reference_model": {"name": "org/small"}, "target_model": {"name": "org/large"}}
    assert demo_settings(images_of({**own, **models})["demo"]) == [tasks]
    groups = [{"name": "general", "tasks": ["mme"]}]
    assert demo_settings(images_of({**own, **models, "evaluation": {"groups": groups}})["demo"]) == []


def test_a_list_of_annotations(tmp_path):
    annotations = [str(tmp_path / "a/*.json"), str(tmp_path / "b.json")]
    config = images_of({"dataset": {"annotations": annotations}})["demo"]
    assert config.dataset.images == str(tmp_path)
    with pytest.raises(ConfigError, match=r"dataset\.annotations: .*at least 1"):
        images_of({"dataset": {"annotations": []}})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[]", r"dataset\.annotations: .*a\.json contains no samples"),
        ("a.json", '{"a": [{"x": 1}], "b": [{"x": 1}]}', "several lists"),
        ("a.csv", "x", "unknown dataset format"),
        ("train-*", None, "matches no files"),
        ("x" * 300, None, "File name too long"),
    ],
)
def test_annotations_that_cannot_be_read_are_refused_when_the_config_is_read(
    tmp_path, monkeypatch, name, content, message
):
    monkeypatch.chdir(REPO)
    if content is not None:
        (tmp_path / name).write_text(content)
    config = merged({"dataset": {"annotations": str(tmp_path / name), "images": str(tmp_path)}})
    with pytest.raises(ConfigError, match=message):
        check_config(config)


@pytest.mark.parametrize("key", ["dataset.images", "reference_model.name", "evaluation.include_path"])
def test_a_path_that_is_too_long_is_refused_when_the_config_is_read(tmp_path, monkeypatch, key):
    monkeypatch.chdir(REPO)
    section, name = key.split(".")
    with pytest.raises(ConfigError, match=f"{section}\\.{name}: the folder .* does not exist"):
        check_config(merged({section: {name: f"/{'x' * 300}"}}))


@pytest.mark.parametrize("key", ["annotations", "images"])
def test_braces_are_refused_when_the_config_is_read(tmp_path, monkeypatch, key):
    monkeypatch.chdir(REPO)
    records = write_data(tmp_path / "data")
    write_data(tmp_path / "my {run}")
    paths = {"annotations": str(tmp_path / "data/annotations.json"), "images": str(tmp_path / "data/images")}
    paths[key] = paths[key].replace("/data/", "/my {run}/")
    with pytest.raises(ConfigError, match=rf"dataset\.{key}: .* has braces, which Snakemake reserves"):
        check_config(merged({"dataset": {**paths, "shards": 1}, "clustering": {"k": len(records)}}))


def test_a_run_name_that_is_too_long_for_file_names_is_refused():
    with pytest.raises(ConfigError, match=r"run: .*at most 100 characters"):
        check_config(merged({"run": "x" * 101}), files=False)


def write_data(folder, count=12):
    """Write a dataset with one image; the path of its annotations."""
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(folder / "images/a {x} #1.png")
    records = [make_record(i, image=i % 2) | ({"image": "a {x} #1.png"} if i % 2 else {}) for i in range(count)]
    (folder / "annotations.json").write_text(json.dumps(records))
    return records


def run(place, target, overrides):
    """Run a target of the default config with these overrides."""
    (place / "my.yaml").write_text(yaml.safe_dump(overrides, allow_unicode=True))
    return place.run(target, config=place / "my.yaml")


def overrides_for(folder, **dataset):
    return {
        "run": "own",
        "dataset": {"annotations": str(folder / "annotations.json"), "images": str(folder / "images"), **dataset},
        "clustering": {"k": 3},
    }


@pytest.mark.workflow
def test_unusual_paths_of_dataset_images_and_results(tmp_path):
    place_folder, data = tmp_path / "runs #2 [a] é", tmp_path / ODD
    place_folder.mkdir()
    place = Workplace(place_folder)
    records = write_data(data)
    code, output = run(place, "results/own/shards", overrides_for(data, shards=2))
    assert code == 0, output
    assert len(pd.read_parquet(place / "results/own/samples/manifest.parquet")) == len(records)
    globbed = overrides_for(data)
    globbed["dataset"] |= {"annotations": [f"{tmp_path}/data*/annot*.json"], "shards": 3}
    code, output = run(place, "results/own/shards", globbed)
    assert code == 0, output
    assert len(list((place / "results/own/shards").glob("*.jsonl"))) == 3


@pytest.mark.workflow
def test_a_workflow_in_a_folder_with_braces_is_refused(tmp_path):
    place_folder = tmp_path / "my {run}"
    place_folder.mkdir()
    write_data(tmp_path / "data")
    code, output = run(Workplace(place_folder), "results/own/shards", overrides_for(tmp_path / "data"))
    assert code == 1
    assert "the folder of the workflow: " in output
    assert "has braces, which Snakemake reserves" in output


@pytest.mark.workflow
def test_results_may_be_in_a_folder_with_braces(workplace, tmp_path):
    records = write_data(tmp_path / "data")
    folder = tmp_path / "results {run} {x}"
    folder.mkdir()
    (workplace / "results").symlink_to(folder)
    code, output = run(workplace, "results/own/shards", overrides_for(tmp_path / "data"))
    assert code == 0, output
    assert len(pd.read_parquet(folder / "own/samples/manifest.parquet")) == len(records)


@pytest.mark.workflow
def test_too_many_rejected_samples_are_kept_and_named(workplace, tmp_path):
    data = tmp_path / "data"
    write_data(data)
    shutil.rmtree(data / "images")
    (data / "images").mkdir()
    code, output = run(workplace, "results/own/samples/manifest.parquet", overrides_for(data))
    assert code == 1
    assert "6 of 12 samples (50.0%) were rejected" in output
    assert "missing image (6), for example:" in output
    kept = "results/own/logs/manifest.rejected.parquet"
    assert kept in output
    assert len(pd.read_parquet(workplace / kept)) == 6
    assert not (workplace / "results/own/samples/manifest.parquet").exists()


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"groups": [{"name": "x", "tasks": ["mme"]}], "holdout": 0.1}, "holdout is set, but no group asks it"),
        ({"groups": [{"name": "x", "tasks": ["holdout"]}]}, "nothing is held out"),
        ({"groups": [{"name": "x", "tasks": ["holdout", "mme"]}], "holdout": 0.1}, "a group of its own"),
        ({"holdout": 0.6}, "less than or equal to 0.5"),
    ],
)
def test_held_out_samples_are_asked_or_refused(evaluation, message):
    with pytest.raises(ConfigError, match=message):
        images_of({"evaluation": evaluation})


def test_the_tasks_default_to_the_held_out_samples():
    groups = images_of({"evaluation": {"holdout": 0.1}})["demo"].evaluation.groups
    assert [(group.name, group.tasks) for group in groups] == [("holdout", ["holdout"])]
    runs = [{"run": "a"}, {"run": "b", "evaluation": {"holdout": 0.1}}]
    configs = images_of({"runs": runs})
    assert [configs[run].evaluation.groups[0].name for run in ("a", "b")] == ["mini_mix", "holdout"]


@pytest.mark.workflow
def test_a_run_on_own_data_asks_its_held_out_samples(finished, workplace, tmp_path):
    """Held-out samples are in no coreset, not even the full one, and every model is scored on them."""
    shutil.copytree(finished / "resources/models", workplace / "resources/models")
    source = json.loads((finished / "resources/mini-mix/train.json").read_text())[:300]
    data = tmp_path / "data"
    data.mkdir()
    shutil.copytree(finished / "resources/mini-mix/images", data / "images")
    (data / "train.json").write_text(json.dumps(source))
    small = yaml.safe_load((REPO / "tests/config/small.yaml").read_text())
    small["evaluation"]["holdout"] = 0.3
    small |= {"run": "own", "dataset": {"annotations": str(data / "train.json"), "images": str(data / "images")}}
    del small["clustering"]
    code, output = run(workplace, "all", small)
    assert code == 0, output
    results = workplace / "results/own"
    held_out = set(pd.read_parquet(results / "samples/holdout.parquet")["sample_id"])
    assert 50 <= len(held_out) <= 120
    kept = set(pd.read_parquet(results / "manifest.parquet")["sample_id"])
    assert not held_out & kept
    assert len(held_out | kept) == 300
    for coreset in results.glob("coresets/*/*/coreset.json"):
        assert not held_out & {record["id"] for record in json.loads(coreset.read_text())}
    assert len(list(results.glob("coresets/*/*/coreset.json"))) == 3
    scores = pd.read_csv(results / "summary.csv")
    assert set(scores["method"]) == {"coincide", "random", "full"}
    assert set(scores["task"]) > {"holdout_easy_vqa", "holdout_others"}
    assert len(pd.read_parquet(results / "centroids.parquet")) == round(len(kept) / 66)
    text = (results / "summary.md").read_text()
    assert f"{len(held_out)} held out for evaluation" in text
    assert "reference_model.name is the demo's toy model" in text
