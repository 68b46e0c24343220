"""The workflow runs from other folders than that of its files, which stay as they are."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml
from conftest import REPO, environment

from coincide.base.files import in_workflow_folder

PARTS = ("Snakefile", "rules", "workflow_scripts", "coincide", "config", "config.yaml", "envs", "profiles", "docs")
RANDOM = {"selection": {"fractions": [0.2], "methods": ["random"]}}


@pytest.fixture
def checkout(tmp_path):
    """A copy of the files of the workflow."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in PARTS:
        if (REPO / name).is_dir():
            shutil.copytree(REPO / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(REPO / name, folder / name)
    return folder


def files_of(folder):
    """Modification times of all files."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def snakemake(checkout, *arguments, cwd):
    """Run Snakemake with the package of the checkout and nothing written into it by Python: (exit code, output)."""
    cache = {"PYTHONDONTWRITEBYTECODE": "1", "NUMBA_CACHE_DIR": str(cwd / "numba")}
    result = subprocess.run(
        [Path(sys.executable).parent / "snakemake", *map(str, arguments)],
        cwd=cwd,
        env={**environment(), **cache, "PYTHONPATH": str(checkout)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return result.returncode, result.stdout


def small_config(folder):
    """The small config with one model, as a file in the folder."""
    small = yaml.safe_load((REPO / "tests/config/small.yaml").read_text()) | RANDOM
    small["target_model"] |= {"full": False}
    small["target_model"]["training"]["epochs"] = 1
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(small))
    return path


@pytest.mark.workflow
def test_two_users_run_a_checkout_that_they_cannot_change(finished, checkout, tmp_path):
    before = files_of(checkout)
    config = small_config(tmp_path)
    options = ["--snakefile", checkout / "Snakefile", "--profile", checkout / "profiles/local", "--configfile", config]
    users = [tmp_path / "a", tmp_path / "b"]
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other_file_system:
        assert os.stat(other_file_system).st_dev != os.stat(tmp_path).st_dev
        for user in users:
            user.mkdir()
            shutil.copytree(finished / "resources", user / "resources")
        (users[0] / "results").symlink_to(other_file_system)
        # from a third folder; the task files of the evaluation are those of the checkout
        code, output = snakemake(checkout, "evaluate", *options, "--directory", users[0], cwd=tmp_path)
        assert code == 0, output
        run = Path(other_file_system) / "small"
        results = run / "evaluations/target/random/0.2/0/mini_mix/results.json"
        assert json.loads(results.read_text())["results"]
        code, output = snakemake(checkout, "evaluate", *options, "-n", cwd=users[0])
        assert "Nothing to be done" in output
    # the other user has results and a lock of their own
    code, output = snakemake(checkout, "evaluate", *options, "--until", "manifest", cwd=users[1])
    assert code == 0, output
    assert (users[1] / "results/small/samples/manifest.parquet").exists()
    assert files_of(checkout) == before
    assert {path.name for path in tmp_path.iterdir()} <= {"checkout", "small.yaml", "a", "b", "numba"}


MODULE = """
configfile: "small.yaml"


module selection:
    snakefile:
        "{checkout}/Snakefile"
    config:
        config


use rule * from selection


rule count:
    default_target: True
    input:
        "results/small/coresets/random/0.2/coreset.json",
    output:
        "count.txt",
    run:
        import json

        with open(input[0]) as file, open(output[0], "w") as target:
            print(len(json.load(file)), file=target)
"""


@pytest.mark.workflow
def test_another_workflow_includes_this_one_as_a_module(finished, checkout, tmp_path):
    user = tmp_path / "user"
    user.mkdir()
    shutil.copytree(finished / "resources", user / "resources")
    (user / "Snakefile").write_text(MODULE.format(checkout=checkout))
    small_config(user)
    code, output = snakemake(checkout, "--cores", "1", cwd=user)
    assert code == 0, output
    assert (user / "count.txt").read_text() == "132\n"
    coreset = "results/small/coresets/random/0.2/coreset.parquet"
    assert (user / coreset).read_bytes() == (finished / coreset).read_bytes()


def test_a_path_is_looked_up_in_the_working_folder_first(tmp_path, monkeypatch):
    (tmp_path / "workflow/config/tasks").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv("COINCIDE_WORKFLOW_FOLDER", raising=False)
    assert in_workflow_folder("config/tasks") == "config/tasks"
    monkeypatch.setenv("COINCIDE_WORKFLOW_FOLDER", str(tmp_path / "workflow"))
    assert in_workflow_folder("config/tasks") == str(tmp_path / "workflow/config/tasks")
    assert in_workflow_folder("nowhere") == "nowhere"
    (tmp_path / "work/config/tasks").mkdir(parents=True)
    assert in_workflow_folder("config/tasks") == "config/tasks"
