"""Which files `snakemake compare` reads for the names that the config gives."""

from types import SimpleNamespace

import pytest
import yaml
from conftest import REPO
from snakemake.utils import update_config

from coincide.workflow.compared_coresets import compared_names, compared_pairs, compared_sides, comparison_folder
from coincide.workflow.config import ConfigError
from coincide.workflow.overlay import check_runs
from coincide.workflow.stages import Runs


def runs_of(**values):
    config = yaml.safe_load((REPO / "config.yaml").read_text())
    update_config(config, values)
    return Runs(check_runs(config, files=False))


def two_runs(**values):
    return runs_of(runs=[{"run": "first"}, {"run": "second", "selection": {"temperature": 0.2}}], **values)


def results_of(folder, run, *coresets):
    """Empty files of a run in results/."""
    paths = ["manifest.parquet", "clusters.parquet", *(f"coresets/{coreset}/coreset.parquet" for coreset in coresets)]
    for path in paths:
        file = folder / "results" / run / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def test_the_first_two_runs_of_the_config_are_compared_without_a_name():
    runs = two_runs()
    assert compared_names(runs) == ["first", "second"]
    assert comparison_folder(runs) == "results/compare-first-second"
    first, second = compared_sides(runs)
    assert second.clusters == "results/first/clusters.parquet"  # shared with the first run
    assert compared_pairs(first, second) == {
        "coincide 0.2": tuple(f"results/{run}/coresets/coincide/0.2/coreset.parquet" for run in ("first", "second")),
        "random 0.2": ("results/first/coresets/random/0.2/coreset.parquet",) * 2,
    }


def test_a_single_run_needs_names():
    runs = runs_of()
    assert comparison_folder(runs) == "results/compare"
    with pytest.raises(ConfigError, match="name two runs or two coresets"):
        compared_sides(runs)


def test_one_name_is_an_error():
    with pytest.raises(ConfigError, match="compare"):
        runs_of(compare=["demo"])


def test_two_coresets_of_a_run_are_a_pair():
    names = ["results/demo/coresets/coincide/0.2", "results/demo/coresets/random/0.2/"]
    runs = runs_of(compare=names)
    assert comparison_folder(runs) == "results/compare-demo-coincide-0.2-demo-random-0.2"
    sides = compared_sides(runs)
    assert list(compared_pairs(*sides)) == ["coincide 0.2 and random 0.2"]
    with pytest.raises(ConfigError, match=r"no coreset of the config; it has coincide 0.2, random 0.2"):
        compared_sides(runs_of(compare=[names[0], "results/demo/coresets/el2n/0.2"]))


def test_runs_of_other_configs_are_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results_of(tmp_path, "other", "coincide/0.2", "full/1")
    for name in ("results/other", "other", str(tmp_path / "results/other")):
        first, second = compared_sides(runs_of(compare=["demo", name]))
        assert first.manifest == "results/demo/manifest.parquet"
        assert second.manifest == str(tmp_path / "results/other/manifest.parquet")
        assert compared_pairs(first, second)["coincide 0.2"][1] == str(
            tmp_path / "results/other/coresets/coincide/0.2/coreset.parquet"
        )


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="nothing is neither a run of the config nor a folder with coresets"):
        compared_sides(runs_of(compare=["demo", "nothing"]))
    results_of(tmp_path, "other", "coincide/0.1")
    first, second = compared_sides(runs_of(compare=["demo", "other"]))
    with pytest.raises(ConfigError, match=r"other has coincide 0\.1"):
        compared_pairs(first, second)
    (tmp_path / "results/other/clusters.parquet").unlink()
    with pytest.raises(ConfigError, match=r"other/clusters\.parquet does not exist"):
        compared_sides(runs_of(compare=["demo", "other"]))


def test_full_data_is_compared_only_by_name():
    sides = [
        SimpleNamespace(name=name, coresets={("full", "1"): name, ("coincide", "0.2"): name}) for name in ("a", "b")
    ]
    assert compared_pairs(*sides) == {"coincide 0.2": ("a", "b")}
