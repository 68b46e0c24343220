"""The workflow on a real Slurm (tests/slurm/cluster.sh): the shipped profile, at sizes that fit one machine."""

import os
import shutil
import subprocess
import time

import pytest
import yaml
from conftest import REPO, Workplace

RUN = "results/small"
CORESET = f"{RUN}/coresets/coincide/0.2/coreset.parquet"

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif("COINCIDE_SLURM" not in os.environ, reason="needs the test cluster: make test-slurm"),
]


def slurm(*command):
    """Output of a Slurm command."""
    return subprocess.run(command, text=True, capture_output=True, check=True).stdout


def cluster(*arguments):
    """A verb of the test cluster."""
    subprocess.run([REPO / "tests/slurm/cluster.sh", *arguments], check=True, timeout=120, stdout=subprocess.DEVNULL)


@pytest.fixture
def ready(finished, tmp_path):
    """A workplace whose data and models are there, and nothing of the run; the profile at a size that fits."""
    place = Workplace(tmp_path)
    shutil.copytree(finished / "resources", tmp_path / "resources")
    small_profile(tmp_path / "slurm")
    return place


def small_profile(folder, **resources):
    """The shipped profile with jobs small enough for the test cluster; everything else as it is."""
    profile = yaml.safe_load((REPO / "profiles/slurm/config.yaml").read_text())
    for of_rule in (profile["default-resources"], *profile["set-resources"].values()):
        for name, size in (("mem_mb", 2000), ("runtime", 20)):
            if name in of_rule:
                of_rule[name] = f"{size} * attempt"
    profile["set-resources"]["activations"] |= resources
    profile["set-threads"] = dict.fromkeys(profile["set-threads"], 1)
    profile |= {
        "slurm-init-seconds-before-status-checks": 2,
        "latency-wait": 20,
        "max-status-checks-per-second": 1,
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(profile))


def wait_for(what, seconds=120):
    """Wait until what() is true and return it."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)
    return found


def end(process, seconds=400):
    """Exit code of a started Snakemake."""
    return process.wait(timeout=seconds)


def tasks():
    """(task, job id) of the array tasks that run: [('1', '12_1'), …]."""
    lines = slurm("squeue", "-h", "-r", "-t", "R", "-o", "%K %i").splitlines()
    return [tuple(line.split()) for line in lines if line.split()[0] != "N/A"]


def same(place, finished, name=CORESET):
    """Whether an artefact is byte for byte that of the undisturbed run."""
    return (place / name).read_bytes() == (finished / name).read_bytes()


def test_a_coreset_from_slurm_is_the_one_from_this_machine(finished, ready):
    code, output = ready.run("select", profile="slurm")
    assert code == 0, output
    for name in (f"{RUN}/clusters.parquet", CORESET, f"{RUN}/coresets/random/0.2/coreset.json"):
        assert same(ready, finished, name)
    jobs = [row.split("|") for row in slurm("sacct", "-X", "-n", "-P", "--format=JobID,AllocTRES").splitlines()]
    gpus = [job for job, resources in jobs if "gres/gpu=1" in resources]
    assert len(gpus) == 2
    assert all("_" in job for job in gpus)
