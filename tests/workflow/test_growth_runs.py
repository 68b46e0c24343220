"""A dataset that grows: a run that extends a finished one reads only the new samples."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import REPO, Workplace
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
    kept = pd.read_parquet(first / "coresets/coincide/0.2/coreset.parquet")["sample_id"]
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
            "selection": {"constraints": {"keep": str(first / "coresets/coincide/0.2/coreset.parquet")}},
        }
    )
    (tmp_path / "second.yaml").write_text(yaml.safe_dump(overlay))
    code, output = workplace.run("select", config=tmp_path / "second.yaml")
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
    coreset = pd.read_parquet(second / "coresets/coincide/0.2/coreset.parquet")["sample_id"]
    assert set(kept) <= set(coreset)
