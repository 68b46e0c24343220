"""The workflow on a real Slurm (tests/slurm/cluster.sh): the shipped profile, at sizes that fit one machine."""

import json
import os
import shutil
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from conftest import REPO, Workplace

from coincide.workflow.job import STARTED
from coincide.workflow.plan import attempts
from coincide.workflow.status import cause

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
    yield place
    for process in psutil.process_iter(["cmdline"]):  # of a node that was set down under its jobs
        if any(str(tmp_path) in argument for argument in process.info["cmdline"] or ()):
            process.kill()


def small_profile(folder, rule="activations", **resources):
    """The shipped profile with jobs small enough for the test cluster, and a rule's resources; the rest as it is."""
    written = folder / "config.yaml"
    if written.exists():
        profile = yaml.safe_load(written.read_text())
        profile["set-resources"].setdefault(rule, {}).update(resources)
        written.write_text(yaml.safe_dump(profile))
        return
    profile = yaml.safe_load((REPO / "profiles/slurm/config.yaml").read_text())
    for of_rule in (profile["default-resources"], *profile["set-resources"].values()):
        for name, size in (("mem_mb", 2000), ("runtime", 20)):
            if name in of_rule:
                of_rule[name] = f"{size} * attempt"
    profile["set-threads"] = dict.fromkeys(profile["set-threads"], 1)
    profile |= {
        "slurm-init-seconds-before-status-checks": 3,
        "latency-wait": 20,
        "max-status-checks-per-second": 1,
    }
    folder.mkdir()
    written.write_text(yaml.safe_dump(profile))


def wait_for(what, seconds=120):
    """Wait until what() is true and return it."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return found


def end(process, seconds=400):
    """Exit code of a started Snakemake."""
    return process.wait(timeout=seconds)


def same(place, finished, name=CORESET):
    """Whether an artefact is byte for byte that of the undisturbed run."""
    return (place / name).read_bytes() == (finished / name).read_bytes()


def test_a_coreset_from_slurm_is_the_one_from_this_machine(finished, ready):
    code, output = ready.run("select", profile="slurm")
    assert code == 0, output
    for name in (f"{RUN}/clusters.parquet", CORESET, f"{RUN}/coresets/random/0.2/coreset.json"):
        assert same(ready, finished, name)
    jobs = [row.split("|") for row in slurm("sacct", "-X", "-n", "-P", "--format=JobID,AllocTRES,WorkDir").splitlines()]
    gpus = [job for job, resources, folder in jobs if "gres/gpu=1" in resources and folder == str(ready.folder)]
    assert len(gpus) == 2  # the two shards, and nothing else


# --- faults: each run ends with the coreset of the undisturbed one ------------------------------------------


def log_of(place, rule, name):
    """What the log of a job tells of its attempts."""
    return attempts(place / RUN / "logs" / rule / f"{name}.log")


def running(place, shard):
    """The attempt at a shard that runs, or None."""
    tried = log_of(place, "activations", shard)
    return tried[-1] if tried and tried[-1].state == "running" else None


def python_of(place, shard):
    """Process of the job that extracts a shard: the one that wrote the last start into its log."""
    text = (place / RUN / f"logs/activations/{shard}.log").read_text()
    start = [line for line in text.splitlines() if line.startswith(STARTED)][-1]
    return psutil.Process(json.loads(start.removeprefix(STARTED))["pid"])


def hold(place, shard):
    """Wait for the job that extracts a shard and stop it where it is: its process, and the attempt."""
    attempt = wait_for(lambda: running(place, shard), 200)
    process = python_of(place, shard)
    process.suspend()
    return process, attempt


def test_cancelled_killed_and_its_daemons_gone(finished, ready):
    """scancel of a job, SIGKILL of a job, slurmctld restarted, slurmdbd gone for two minutes, two at once."""
    process = ready.start("select", profile="slurm", log="run.out")
    (_, first), (second, _) = hold(ready, "00000"), hold(ready, "00001")
    slurm("scancel", first.slurm)
    second.kill()
    cluster("stop", "slurmdbd")
    gone = time.monotonic()
    code, output = ready.run("select", profile="slurm")
    assert code != 0
    assert "results/small is being worked on by process" in output
    wait_for(lambda: len(log_of(ready, "activations", "00000")) > 1, 200)
    again, _ = hold(ready, "00000")
    cluster("stop", "slurmctld")
    again.resume()
    time.sleep(10)
    cluster("start", "slurmctld")
    time.sleep(max(0, 120 - (time.monotonic() - gone)))
    cluster("start", "slurmdbd")
    assert end(process) == 0, (ready / "run.out").read_text()
    assert same(ready, finished)
    assert [a.state for a in log_of(ready, "activations", "00000")] == ["terminated", "done"]
    assert [a.state for a in log_of(ready, "activations", "00001")] == ["silent", "done"]
    assert len(log_of(ready, "", "clusters")) == 1  # nothing else ran twice


def test_snakemake_killed_and_started_again(finished, ready):
    """SIGKILL of Snakemake leaves jobs in the queue: the next start cancels them, and computes what is missing."""
    process = ready.start("select", profile="slurm", log="run.out")
    hold(ready, "00000")
    process.kill()
    process.wait()
    manifest = (ready / RUN / "samples/manifest.parquet").stat().st_mtime_ns
    left = slurm("squeue", "-h", "-o", "%j").split()
    assert left
    code, output = ready.run("select", profile="slurm")
    assert code == 0, output
    assert f"cancelled the Slurm jobs that a killed run left behind ({left[0]})" in output
    assert same(ready, finished)
    assert (ready / RUN / "samples/manifest.parquet").stat().st_mtime_ns == manifest


def test_over_time_and_over_memory(finished, ready):
    """A job over its time limit gets more time, one over its memory more memory."""
    small_profile(ready / "slurm", rule="clusters", mem_mb="100 * attempt ** 5")
    small_profile(ready / "slurm", rule="activations", runtime="attempt ** 3")
    process = ready.start("select", profile="slurm", log="run.out")
    hold(ready, "00001")  # it hangs
    assert end(process) == 0, (ready / "run.out").read_text()
    assert same(ready, finished)
    first, second = log_of(ready, "activations", "00001")
    assert (first.state, second.state) == ("terminated", "done")
    assert cause(first, ready / ".snakemake/slurm_logs")[0] == "time limit"
    killed = [path.read_text() for path in (ready / ".snakemake/slurm_logs/rule_clusters").rglob("*.log")]
    assert any("exceeded memory limit" in text for text in killed)
    assert log_of(ready, "", "clusters")[-1].state == "done"


def test_the_disk_full_while_a_shard_is_written(finished, ready):
    """Jobs say so and leave nothing half-written; with room again the same command goes on."""
    folder = ready / RUN / "activations"
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], check=True)
    try:
        code, output = ready.run("select", "--retries", "0", profile="slurm")
        assert code != 0
        assert "No space left on device" in output
        text = subprocess.run(
            [sys.executable, "-m", "coincide.workflow.status"],
            cwd=ready.folder,
            text=True,
            capture_output=True,
            check=True,
        ).stdout
        assert "FAILED activations (00000), attempt 1: its own error" in text
        assert "No space left on device" in text
        assert not list(folder.glob("*.parquet"))
        subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
        code, output = ready.run("select", profile="slurm")
        assert code == 0, output
        assert same(ready, finished)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_without_accounting_a_node_fails(finished, ready):
    """No sacct answers, and a node is set down with jobs on it."""
    cluster("up", "without-accounting")
    try:
        process = ready.start("select", profile="slurm", log="run.out")
        task = hold(ready, "00000")[1].slurm
        node = slurm("squeue", "-h", "-j", task, "-o", "%N").strip()
        slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
        wait_for(lambda: len(log_of(ready, "activations", "00000")) > 1, 200)
        # it may have come back by itself
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], check=False, capture_output=True)
        assert end(process) == 0, (ready / "run.out").read_text()
        assert same(ready, finished)
    finally:
        cluster("up")


def test_nothing_of_the_login_shell_reaches_the_jobs(finished, ready, monkeypatch):
    """A site that starts jobs with a bare environment, whatever the submission asks for."""
    shim = ready / "bin/sbatch"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/bash\nexec {shutil.which("sbatch")} "${{@/--export=ALL/--export=NONE}}"\n')
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{shim.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("ONLY_OF_THE_LOGIN_SHELL", "1")
    process = ready.start("select", profile="slurm", log="run.out")
    held, _ = hold(ready, "00000")
    assert "ONLY_OF_THE_LOGIN_SHELL" not in held.environ()
    held.resume()
    assert end(process) == 0, (ready / "run.out").read_text()
    assert same(ready, finished)


# --- several nodes ---------------------------------------------------------------------------------------


def test_two_nodes_train_as_one_process(finished, ready):
    """Finetuning by two processes, each on a node of one Slurm job, has the losses of one process."""
    shutil.copytree(finished / "results", ready / "results")
    model = f"{RUN}/models/target/random/0.2/0"
    shutil.rmtree(ready / model)
    small = yaml.safe_load((REPO / "tests/config/small.yaml").read_text())
    small["target_model"]["training"]["nodes"] = 2
    (ready / "two.yaml").write_text(yaml.safe_dump(small))
    small_profile(ready / "slurm", rule="finetune_model", nodes=2, tasks=2, tasks_per_gpu=0, gpu=2, mpi="srun")
    code, output = ready.run(model, profile="slurm", config=ready / "two.yaml")
    assert code == 0, output
    losses = [
        [json.loads(line).get("loss", 0) for line in (place / model / "training_log.jsonl").read_text().splitlines()]
        for place in (ready, finished)
    ]
    assert losses[0][:4] == pytest.approx(losses[1][:4], rel=1e-4)
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)  # the last batch is not full, and is filled up for two
    jobs = slurm("sacct", "-n", "-P", "--format=JobID,NNodes,NodeList,WorkDir").splitlines()
    assert any("|2|n[1-2]|" in job and str(ready.folder) in job for job in jobs)
