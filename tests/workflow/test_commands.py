"""`make slurm-profile` and `make status`."""

import os
import shutil
import subprocess

from conftest import REPO


def install_profile(folder, **names):
    """Install the Slurm profile below a folder and return the folder of the profile."""
    pairs = [f"{name}={value}" for name, value in names.items()]
    subprocess.run(
        [REPO / "profiles/install.sh", "slurm", *pairs],
        env={**os.environ, "XDG_CONFIG_HOME": str(folder)},
        check=True,
        capture_output=True,
    )
    return folder / "snakemake/slurm"


def test_an_edited_profile_is_kept_however_often_the_profile_is_installed(tmp_path):
    profile = install_profile(tmp_path, ACCOUNT="a")
    installed = (profile / "config.yaml").read_text()
    assert "slurm_account: a\n" in installed
    (profile / "config.yaml").write_text("mine")
    for account in ("b", "c", "c"):
        install_profile(tmp_path, ACCOUNT=account)
    kept = {path.name: path.read_text() for path in profile.iterdir()}
    assert set(kept) == {"config.yaml", "config.yaml.before", "config.yaml.before-2"}
    assert kept["config.yaml.before"] == "mine"
    assert kept["config.yaml.before-2"] == installed.replace("slurm_account: a\n", "slurm_account: b\n")
    assert "slurm_account: c\n" in kept["config.yaml"]


def test_make_status_installs_nothing(tmp_path):
    shutil.copy(REPO / "Makefile", tmp_path)
    result = subprocess.run(["make", "status"], cwd=tmp_path, text=True, capture_output=True, check=False)
    assert result.returncode != 0
    assert "nothing was run from this folder" in result.stdout + result.stderr
    assert not (tmp_path / ".venv").exists()
