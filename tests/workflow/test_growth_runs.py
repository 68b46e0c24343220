"""A dataset that grows: a run that extends a finished one reads only the new samples."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import REPO, Workplace, jobs_of
from snakemake.utils import update_config

from coincide.base.activation_store import Activations
from coincide.workflow.config import ConfigError, check_config
from coincide.workflow.overlay import check_runs
from coincide.workflow.stages import Runs

SMALL = yaml.safe_load((REPO / "tests/config/small.yaml").read_text())


def small_with(changes):
    values = json.loads(json.dumps(SMALL))
    update_config(values, changes)
    return values


def test_a_run_that_extends_another_is_checked_when_the_config_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(REPO)
    values = yaml.safe_load((REPO / "config.yaml").read_text())
    update_config(values, SMALL)
    update_config(
        values, {"dataset": {"extends": str(tmp_path)}, "clustering": {"centroids": str(tmp_path / "c.parquet")}}
    )
    with pytest.raises(ConfigError) as error:
        check_config(values)
    assert [line.split(";")[0] for line in error.value.problems] == [
        f"dataset.extends: {tmp_path} has no shards: name the folder of a run that has extracted its samples itself, "
        "results/<run>",
        f"clustering.centroids: {tmp_path / 'c.parquet'} does not exist",
        f"clustering.centroids: {tmp_path / 'clusters.parquet'} does not exist",
    ]
    update_config(values, {"dataset": {"extends": "results/small"}, "clustering": {"centroids": None}})
    with pytest.raises(ConfigError, match=r"dataset\.extends: results/small is the folder of this run"):
        check_config(values)


def test_runs_with_other_centroids_share_only_what_does_not_depend_on_them():
    values = yaml.safe_load((REPO / "config.yaml").read_text())
    update_config(
        values, {"runs": [{"run": "a"}, {"run": "b", "clustering": {"centroids": "results/c/centroids.parquet"}}]}
    )
    runs = Runs(check_runs(values, files=False))
    assert runs.folder("b", "merge") == "results/a"
    assert runs.folder("b", "clusters") == runs.folder("b", "picks") == "results/b"


@pytest.mark.workflow
def test_a_run_that_extends_another_reads_only_new_samples(finished, tmp_path):
    workplace = Workplace(tmp_path)
    (tmp_path / "resources").symlink_to(finished / "resources")
    records = json.loads((finished / "resources/mini-mix/train.json").read_text())
    first = finished / "results/small"
    # the finished run has all records: one of them changes, one is new, and the order is another
    changed, new = records[5], {**records[6], "id": "new sample"}
    changed["conversations"][-1]["value"] = "another answer"
    (tmp_path / "data.json").write_text(json.dumps([new, *records[::-1]]))
    overlay = small_with(
        {
            "run": "second",
            "dataset": {
                "annotations": str(tmp_path / "data.json"),
                "images": "resources/mini-mix/images",
                "extends": str(first),
                "shards": 1,
            },
            "clustering": {"centroids": str(first / "centroids.parquet")},
            "selection": {"keep_earlier": True},
        }
    )
    (tmp_path / "second.yaml").write_text(yaml.safe_dump(overlay))
    code, output = workplace.run(config=tmp_path / "second.yaml")
    assert code == 0, output
    second = tmp_path / "results/second"
    assert "659 of 661 samples are reused" in (second / "logs/activations/00000.log").read_text()
    stored = {folder: Activations(folder / "activations.parquet") for folder in (first, second)}
    rows = {folder: pd.Series(np.arange(len(store)), index=store.sample_ids) for folder, store in stored.items()}
    common = [i for i in rows[first].index if i != str(changed["id"])]
    before, after = (np.asarray(stored[f].rows(rows[f][common])) for f in (first, second))
    assert before.tobytes() == after.tobytes()
    labels = [pd.read_parquet(f / "clusters.parquet").set_index("sample_id")["cluster"] for f in (first, second)]
    assert labels[0][common].tolist() == labels[1][common].tolist()
    for method in ("coincide", "random"):
        coreset = second / f"coresets/{method}/0.2/coreset.parquet"
        assert set(ids_of(first / f"coresets/{method}/0.2/coreset.parquet")) == set(ids_of(coreset))  # 132 of both
        assert set(pd.read_parquet(coreset)["constraint"]) == {"earlier"}
    # what was reused and what was computed, and how well the new sample fits
    line = "the activations of 659 of 661 samples are reused; those of 1 new ones, 1 changed ones were computed."
    assert f"The dataset extends {first}: {line}" in output
    assert (
        "coincide at 0.2: 132 samples, 132 of them kept of the earlier coreset, 0 other old ones, 0 new ones." in output
    )
    assert f"The clusters are those of {first}/centroids.parquet. " in output
    assert "of 1 new samples fit the given centroids badly" in (second / "logs/clusters.log").read_text()
    assert "of them reused" in (second / "logs/merge.log").read_text()
    for name in ("summary.md", "report.html"):
        text = (second / name).read_text()
        assert line in text
        assert "132 of them kept of the earlier coreset" in text
    assert '<section id="growth"' in text
    code, output = workplace.run("estimate", config=tmp_path / "second.yaml")
    assert code == 0, output
    assert "660 samples have the id of a sample of the earlier run" in (second / "estimate.md").read_text()


def ids_of(path):
    return pd.read_parquet(path, columns=["sample_id"])["sample_id"].tolist()


@pytest.mark.workflow
def test_a_grown_dataset_has_the_coreset_of_one_run_over_everything(finished, tmp_path):
    workplace = Workplace(tmp_path)
    (tmp_path / "resources").symlink_to(finished / "resources")
    records = json.loads((finished / "resources/mini-mix/train.json").read_text())
    images = [record.get("image", record["id"]) for record in records]
    # 60% of the images: samples of one image are read together
    early = set(dict.fromkeys(images[:396]))
    parts = {"part": [r for r, image in zip(records, images) if image in early], "all": records}
    for name, content in parts.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    methods = ["coincide", "random", "semdedup"]

    def overlay(name, **changes):
        dataset = {"annotations": f"{name}.json", "images": "resources/mini-mix/images", "shards": 2}
        # batches of one group of samples, so that what is computed does not depend on what else is read
        reference = {"batch_tokens": 1, "sample_metrics": True}
        values = {"dataset": dataset, "reference_model": reference, "selection": {"methods": methods}}
        values["clustering"] = {"k": 12}
        update_config(values, changes)
        return small_with(values)

    (tmp_path / "first.yaml").write_text(yaml.safe_dump(overlay("part", run="first")))
    code, output = workplace.run("select", config="first.yaml")
    assert code == 0, output
    first, extends = tmp_path / "results/first", {"extends": "results/first"}
    frozen = {"centroids": "results/first/centroids.parquet"}
    runs = [
        {"run": "scratch"},
        {"run": "anew", "dataset": extends},
        {"run": "topped-up", "dataset": extends, "selection": {"keep_earlier": True}},
        {"run": "new", "dataset": extends, "selection": {"keep_earlier": True, "fraction_of": "new"}},
        {"run": "frozen", "dataset": extends, "clustering": frozen, "selection": {"fraction_of": "new"}},
    ]
    (tmp_path / "second.yaml").write_text(yaml.safe_dump(overlay("all", runs=runs)))
    code, output = workplace.run("select", config="second.yaml")
    assert code == 0, output
    old = ids_of(first / "manifest.parquet")
    assert 300 < len(old) < 500
    assert jobs_of(output)["activations"] == 4, "runs that extend the same run share its activations and the new ones"
    line = f"the activations of {len(old)} of 660 samples are reused; those of {660 - len(old)} new ones were computed."
    assert output.count(line) == 4
    for method in methods:
        coresets = {
            run: tmp_path / f"results/{run}/coresets/{method}/0.2/coreset.parquet"
            for run in ("first", *(entry["run"] for entry in runs))
        }
        assert coresets["anew"].read_bytes() == coresets["scratch"].read_bytes()
        texts = [path.with_suffix(".json").read_bytes() for path in (coresets["anew"], coresets["scratch"])]
        assert texts[0] == texts[1]
        ids = {run: set(ids_of(path)) for run, path in coresets.items()}
        assert ids["first"] <= ids["topped-up"]
        assert len(ids["topped-up"]) == len(ids["scratch"]) == 132
        new = (660 - len(old)) // 5
        assert ids["new"] & set(old) == ids["first"]
        assert len(ids["new"]) == len(ids["first"]) + new
        assert not ids["frozen"] & set(old)
        assert len(ids["frozen"]) == new
    vectors = [Activations(tmp_path / f"results/{run}/activations.parquet") for run in ("anew", "scratch")]
    assert np.asarray(vectors[0]).tobytes() == np.asarray(vectors[1]).tobytes()

    # what clashes with the earlier coreset stops the next start before any job
    clash = {"selection": {"keep_earlier": True, "fractions": [0.3], "methods": ["coincide"]}}
    (tmp_path / "clash.yaml").write_text(yaml.safe_dump(overlay("all", run="clash", dataset=extends, **clash)))
    code, output = workplace.run("select", config="clash.yaml")
    assert code != 0
    assert "selection.keep_earlier: results/first has no coreset of coincide at 0.3 (it has coincide at 0.2" in output
    assert not jobs_of(output)
