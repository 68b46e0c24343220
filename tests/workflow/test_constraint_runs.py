"""Runs with constraints: a floor that brings back a dropped source, and the checks before any model runs."""

import json
import re
import shutil

import pandas as pd
import pytest
import yaml
from conftest import REPO, Workplace, jobs_of
from snakemake.utils import update_config

from coincide.base.sections import Constraints
from coincide.selection.conflicts import ConstraintError
from coincide.workflow.config import ConfigError, check_config
from coincide.workflow.constraint_checks import check_manifests, check_samples

SMALL = yaml.safe_load((REPO / "tests/config/small.yaml").read_text())
RUN = "results/small"


def small_with(changes):
    values = json.loads(json.dumps(SMALL))
    update_config(values, changes)
    return values


def config_with(folder=None, **constraints):
    """The small config with constraints, checked."""
    values = yaml.safe_load((REPO / "config.yaml").read_text())
    update_config(values, small_with({"selection": {"constraints": constraints}}))
    return check_config(values, files=False)


# --- when the config is read -----------------------------------------------------------------------------------------


def test_what_the_config_shows_alone_is_refused_when_it_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(REPO)
    values = yaml.safe_load((REPO / "config.yaml").read_text())
    update_config(values, SMALL)  # 660 samples, 132 of them in a coreset
    values["selection"]["constraints"] = {
        "at_least": {"a": 0.7, "b": 0.4},
        "at_most": {"a": 0.6},
        "text_only": {"at_least": 5, "at_most": 4},
    }
    with pytest.raises(ConfigError) as error:
        check_config(values)
    key = "selection.constraints"
    assert error.value.problems == [
        f"{key}.at_least: the shares sum to 1.1 (a 0.7, b 0.4), but a coreset has 1.0; lower them",
        f"{key}.at_least.a: 0.7 is above at_most (0.6); raise at_most or lower at_least",
        f"{key}.text_only.at_least: 5 is above at_most (4); raise at_most or lower at_least",
    ]
    (tmp_path / "keep.txt").write_text("\n".join(f"s{i}" for i in range(140)))
    values["selection"]["constraints"] = {
        "at_least": {"a": 100, "b": 0.5},
        "keep": str(tmp_path / "keep.txt"),
        "exclude": ["s7"],
    }
    with pytest.raises(ConfigError) as error:
        check_config(values)
    total = "0.2 of 660 samples is 132"
    assert error.value.problems == [
        f"{key}: 1 id is in both keep and exclude: 's7'; remove them from one",
        f"{key}.at_least: 166 samples (a 100, b 66), but {total}; lower them or raise selection.fractions",
        f"{key}.keep: 140 samples, but {total}; shorten it or raise selection.fractions",
    ]
    values["selection"]["constraints"] = {"keep": str(tmp_path / "missing.txt")}
    with pytest.raises(ConfigError, match=r"missing\.txt cannot be read as a list of sample ids"):
        check_config(values)


# --- with the manifest -----------------------------------------------------------------------------------------------


def manifest_of(folder):
    samples = pd.DataFrame({"sample_id": list("abcdefghij"), "source": ["x"] * 8 + ["y"] * 2, "n_images": 1})
    aside = pd.DataFrame({"sample_id": ["r", None]})
    (folder / "samples").mkdir(parents=True)
    samples.to_parquet(folder / "samples/manifest.parquet")
    aside.to_parquet(folder / "samples/rejected.parquet")
    aside.head(0).to_parquet(folder / "samples/holdout.parquet")
    return samples, aside


def test_every_run_that_uses_a_manifest_is_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    samples, aside = manifest_of(tmp_path / "results/one")
    configs = {
        "one": config_with(at_least={"y": 0.5}),
        "two": config_with(at_least={"z": 1}),
        "other": config_with(keep=["r"]),
    }
    configs["one"].selection.fractions = configs["two"].selection.fractions = [0.2, 0.5]
    configs["other"].dataset.shards = 7  # another manifest
    values = {run: config.model_dump() for run, config in configs.items()} | {".jobs": {}}
    with pytest.raises(ConstraintError) as error:
        check_samples(values, "one", samples, [aside])
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert lines[1].startswith(
        "  one: selection.constraints.at_least.y: 3 samples, but there are 2 of the source y (0.5"
    )
    assert lines[2].startswith("  two: selection.constraints.at_least: the dataset has no samples of a source 'z'")
    with pytest.raises(ConstraintError, match=r"other: .*1 id is rejected or held out for evaluation: 'r'"):
        check_samples(values, "other", samples, [aside])

    folders = {run: ("results/one", "results/one") for run in configs}
    with pytest.raises(ConstraintError) as again:
        check_manifests({run: configs[run] for run in ("one", "two")}, folders, [])
    assert str(again.value) == str(error.value)
    check_manifests(configs, folders, ["results/one/samples/manifest.parquet"])  # its job checks it
    # extraction has rejected samples since
    shutil.copy("results/one/samples/rejected.parquet", "results/one/rejected.parquet")
    samples.iloc[:9].to_parquet("results/one/manifest.parquet")
    configs["one"].selection.constraints = Constraints(at_least={"y": 2})
    configs["one"].selection.fractions = [0.5]
    only = {"one": configs["one"]}
    check_manifests(only, folders, ["results/one/manifest.parquet"])
    with pytest.raises(ConstraintError, match="2 samples, but there are 1 of the source y"):
        check_manifests(only, folders, [])


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(finished, tmp_path):
    """A working folder with a copy of a finished run, in which modification times are kept."""
    shutil.copytree(finished.folder, tmp_path / "copy", symlinks=True)
    workplace = Workplace.__new__(Workplace)
    workplace.folder = tmp_path / "copy"
    return workplace


def write_config(folder, constraints):
    path = folder / "constraints.yaml"
    path.write_text(yaml.safe_dump(small_with({"selection": {"constraints": constraints}})))
    return path


def sources_of(workplace, method):
    """(manifest with a column `kept`, coreset) of a method."""
    manifest = pd.read_parquet(workplace / RUN / "manifest.parquet")
    coreset = pd.read_parquet(workplace / RUN / f"coresets/{method}/0.2/coreset.parquet")
    return manifest.assign(kept=manifest["sample_id"].isin(coreset["sample_id"])), coreset


@pytest.mark.workflow
def test_a_floor_brings_a_source_back_and_nothing_is_read_again(copy, tmp_path):
    manifest, before = sources_of(copy, "coincide")
    shares = manifest.groupby("source")["kept"].sum() / manifest["source"].value_counts()
    dropped = shares.idxmin()
    least = max(5, int(manifest.loc[manifest["source"] == dropped, "kept"].sum()) + 4)
    assert (manifest["source"] == dropped).sum() >= least
    kept = manifest.loc[~manifest["kept"], "sample_id"].iloc[0]
    (tmp_path / "exclude.txt").write_text("\n".join(before["sample_id"].iloc[:3]))
    constraints = {"at_least": {dropped: least}, "keep": [kept], "exclude": str(tmp_path / "exclude.txt")}
    code, output = copy.run(config=write_config(tmp_path, constraints))
    assert code == 0, output
    jobs = jobs_of(output)
    assert {"budget", "picks", "coincide_coreset", "method_coreset", "full_coreset", "finetune_model"} <= jobs.keys()
    assert not {"manifest", "activations", "clusters", "density", "transferability", "shares"} & jobs.keys()
    excluded = set(before["sample_id"].iloc[:3])
    for method in ("coincide", "random"):
        manifest, coreset = sources_of(copy, method)
        assert len(coreset) == 132
        assert coreset["sample_id"].is_unique
        assert manifest.loc[manifest["source"] == dropped, "kept"].sum() >= least
        assert kept in set(coreset["sample_id"])
        assert not excluded & set(coreset["sample_id"])
        assert set(coreset["constraint"].dropna()) <= {"keep", "bounds"}
        assert (coreset["constraint"] == "keep").sum() == 1
        records = json.loads((copy / RUN / f"coresets/{method}/0.2/coreset.json").read_text())
        assert {str(record["id"]) for record in records} == set(coreset["sample_id"])
    assert manifest.loc[manifest["source"] == dropped, "kept"].sum() == least or method == "random"
    full = json.loads((copy / RUN / "coresets/full/1/coreset.json").read_text())
    assert len(full) == 660 - 3
    text = (copy / RUN / "summary.md").read_text()
    assert re.search(rf"\| 20.0% \| at least, {dropped} \| {least} \| \d+ \| \d+ \|", text)
    assert "| 20.0% | keep | 1 | 1 | 1 |" in text
    assert "Constraints, in samples" in (copy / RUN / "report.html").read_text()

    # a constraint that no coreset satisfies stops the next start before any job
    constraints = {"at_least": {"no such source": 3}, "keep": ["no such id"]}
    code, output = copy.run("select", config=write_config(tmp_path, constraints))
    assert code != 0
    assert "the dataset has no samples of a source 'no such source'" in output
    assert "1 id is not in the dataset: 'no such id'; correct or remove them" in output
    assert not jobs_of(output)


@pytest.mark.workflow
def test_infeasible_constraints_stop_a_new_run_at_its_manifest(finished, tmp_path):
    workplace = Workplace(tmp_path)
    (tmp_path / "resources").symlink_to(finished / "resources")
    config = write_config(tmp_path, {"at_least": {"captions": 1}, "exclude": ["x"]})
    code, output = workplace.run("select", config=config)
    assert code != 0
    log = (tmp_path / RUN / "logs/manifest.log").read_text()
    assert "the dataset has no samples of a source 'captions'; did you mean caption" in log
    assert "exclude: 1 id is not in the dataset: 'x'" in log
    assert "the dataset has no samples of a source 'captions'" in output
    assert "activations" not in jobs_of(output)
