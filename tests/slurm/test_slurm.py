"""The workflow on a real Slurm (tests/slurm/cluster.sh): the shipped profile, at sizes that fit one machine."""

import os
import subprocess

import pytest
import yaml
from conftest import REPO

RUN = "results/small"

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif("COINCIDE_SLURM" not in os.environ, reason="needs the test cluster: make test-slurm"),
]


def small_profile(folder):
    """The shipped profile with jobs small enough for the test cluster; everything else as it is."""
    profile = yaml.safe_load((REPO / "profiles/slurm/config.yaml").read_text())
    for resources in (profile["default-resources"], *profile["set-resources"].values()):
        for name, size in (("mem_mb", 3000), ("runtime", 20)):
            if name in resources:
                resources[name] = f"{size} * attempt"
    profile["set-threads"] = dict.fromkeys(profile["set-threads"], 1)
    profile |= {"slurm-init-seconds-before-status-checks": 2, "latency-wait": 20}
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(profile))


def test_a_coreset_from_slurm_is_the_one_from_this_machine(finished, workplace):
    small_profile(workplace / "slurm")
    code, output = workplace.run("select", profile="slurm")
    assert code == 0, output
    for name in ("clusters.parquet", "coresets/coincide/0.2/coreset.parquet", "coresets/random/0.2/coreset.json"):
        assert (workplace / RUN / name).read_bytes() == (finished / RUN / name).read_bytes()

    jobs = subprocess.run(
        ["sacct", "-X", "-n", "-P", "--format=Comment,State,AllocTRES"], text=True, capture_output=True, check=True
    ).stdout
    assert "COMPLETED" in jobs
    assert output.count("has been submitted with SLURM jobid") >= 15
    rows = [row.split("|") for row in jobs.splitlines()]
    gpus = [row for row in rows if "gres/gpu=1" in row[2]]
    assert len(gpus) == 2  # the two extraction shards, and nothing else, had a GPU
