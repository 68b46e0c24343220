"""The workflow on a real Slurm (tests/slurm/cluster.sh): the shipped profile, with job sizes that fit one machine."""

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
from coincide.workflow.job_resources import rules_with_demand
from coincide.workflow.plan import attempts
from coincide.workflow.status import cause

RUN = "results/small"
MODEL = f"{RUN}/models/target/random/0.2/0"
CORESET = f"{RUN}/coresets/coincide/0.2/coreset.parquet"

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif("COINCIDE_SLURM" not in os.environ, reason="needs the test cluster: make test-slurm"),
]


def slurm(*command):
    """Output of a Slurm command."""
    return subprocess.run(command, text=True, capture_output=True, check=True).stdout


def cluster(*arguments):
    """Run a command of cluster.sh."""
    subprocess.run([REPO / "tests/slurm/cluster.sh", *arguments], check=True, timeout=120, stdout=subprocess.DEVNULL)


@pytest.fixture
def ready(finished, tmp_path):
    """A working folder with dataset and models, without results; its profile has job sizes for the test cluster."""
    workplace = Workplace(tmp_path)
    shutil.copytree(finished / "resources", tmp_path / "resources")
    small_profile(tmp_path / "slurm")
    yield workplace
    for process in psutil.process_iter(["cmdline"]):  # jobs that outlive a node which was set down
        if any(str(tmp_path) in argument for argument in process.info["cmdline"] or ()):
            process.kill()


def small_profile(folder, rule="activations", **resources):
    """Write the shipped profile with jobs small enough for the test cluster; in an existing one, set resources."""
    path = folder / "config.yaml"
    if path.exists():
        profile = yaml.safe_load(path.read_text())
        profile["set-resources"].setdefault(rule, {}).update(resources)
        path.write_text(yaml.safe_dump(profile))
        return
    profile = yaml.safe_load((REPO / "profiles/slurm/config.yaml").read_text())
    sizes = {"mem_mb": "2000 * attempt", "runtime": "20 * attempt"}
    profile["default-resources"].update(sizes)
    profile["set-resources"] = {rule: dict(sizes) for rule in rules_with_demand()}
    profile["set-threads"] = dict.fromkeys(rules_with_demand(), 1)
    profile |= {
        "slurm-init-seconds-before-status-checks": 3,
        "latency-wait": 20,
        "max-status-checks-per-second": 1,
    }
    folder.mkdir()
    path.write_text(yaml.safe_dump(profile))


def wait_for(condition, seconds=120):
    """Wait until condition() is true and return its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"timed out after {seconds} s"
        time.sleep(0.05)
    return value


def exit_code(process, seconds=400):
    """Wait for a Snakemake process and return its exit code."""
    return process.wait(timeout=seconds)


def same(workplace, finished, name=CORESET):
    """Whether an artefact is byte for byte that of the uninterrupted run."""
    return (workplace / name).read_bytes() == (finished / name).read_bytes()


def test_slurm_and_local_runs_select_the_same_coreset(finished, ready):
    code, output = ready.run("select", profile="slurm")
    assert code == 0, output
    for name in (f"{RUN}/clusters.parquet", CORESET, f"{RUN}/coresets/random/0.2/coreset.json"):
        assert same(ready, finished, name)
    jobs = [
        row.split("|")
        for row in slurm("sacct", "-X", "-n", "-P", "-S", "now-1hour", "--format=JobID,AllocTRES,WorkDir").splitlines()
    ]
    gpus = [job for job, resources, folder in jobs if "gres/gpu=1" in resources and folder == str(ready.folder)]
    assert len(gpus) == 2  # only the two shards


# --- faults: each run ends with the coreset of the uninterrupted one ------------------------------------------


def attempts_at(workplace, rule, name):
    """Attempts at a job, from its log."""
    return attempts(workplace / RUN / "logs" / rule / f"{name}.log")


def running_attempt(workplace, shard):
    """The running attempt at a shard, or None."""
    shard_attempts = attempts_at(workplace, "activations", shard)
    return shard_attempts[-1] if shard_attempts and shard_attempts[-1].state == "running" else None


def extraction_process(workplace, shard):
    """Process of the job that extracts a shard: the one that wrote the last start line into its log."""
    text = (workplace / RUN / f"logs/activations/{shard}.log").read_text()
    start = [line for line in text.splitlines() if line.startswith(STARTED)][-1]
    return psutil.Process(json.loads(start.removeprefix(STARTED))["pid"])


def suspend(workplace, shard):
    """Wait for the job that extracts a shard and suspend it: (its process, the attempt)."""
    attempt = wait_for(lambda: running_attempt(workplace, shard), 200)
    process = extraction_process(workplace, shard)
    process.suspend()
    return process, attempt


def test_jobs_cancelled_or_killed_and_daemons_stopped(finished, ready):
    """scancel of a job, SIGKILL of a job, slurmctld restarted, slurmdbd stopped for two minutes, a second start."""
    process = ready.start("select", profile="slurm", log="run.out")
    (_, first), (second, _) = suspend(ready, "00000"), suspend(ready, "00001")
    slurm("scancel", first.slurm_job)
    second.kill()
    cluster("stop", "slurmdbd")
    stopped = time.monotonic()
    code, output = ready.run("select", profile="slurm")
    assert code != 0
    assert "results/small is in use by process" in output
    wait_for(lambda: len(attempts_at(ready, "activations", "00000")) > 1, 200)
    retry, _ = suspend(ready, "00000")
    cluster("stop", "slurmctld")
    retry.resume()
    time.sleep(10)
    cluster("start", "slurmctld")
    time.sleep(max(0, 120 - (time.monotonic() - stopped)))
    cluster("start", "slurmdbd")
    assert exit_code(process) == 0, (ready / "run.out").read_text()
    assert same(ready, finished)
    assert [a.state for a in attempts_at(ready, "activations", "00000")] == ["terminated", "done"]
    assert [a.state for a in attempts_at(ready, "activations", "00001")] == ["silent", "done"]
    assert len(attempts_at(ready, "", "clusters")) == 1  # no other job ran twice


def test_snakemake_killed_and_started_again(finished, ready):
    """SIGKILL of Snakemake leaves jobs in the queue: the next start cancels them and computes the missing results."""
    process = ready.start("select", profile="slurm", log="run.out")
    suspend(ready, "00000")
    process.kill()
    process.wait()
    manifest = (ready / RUN / "samples/manifest.parquet").stat().st_mtime_ns
    orphans = slurm("squeue", "-h", "-o", "%j").split()
    assert orphans
    code, output = ready.run("select", profile="slurm")
    assert code == 0, output
    assert f"cancelled the Slurm jobs that a killed run left behind ({orphans[0]})" in output
    assert same(ready, finished)
    assert (ready / RUN / "samples/manifest.parquet").stat().st_mtime_ns == manifest


def test_jobs_over_their_time_or_memory_limit(finished, ready):
    """A job over its time limit is retried with more time, a job over its memory limit with more memory."""
    small_profile(ready / "slurm", rule="clusters", mem_mb="100 * attempt ** 5")
    small_profile(ready / "slurm", rule="activations", runtime="attempt ** 3")
    process = ready.start("select", profile="slurm", log="run.out")
    suspend(ready, "00001")  # so that it runs into its time limit
    assert exit_code(process) == 0, (ready / "run.out").read_text()
    assert same(ready, finished)
    first, second = attempts_at(ready, "activations", "00001")
    assert (first.state, second.state) == ("terminated", "done")
    assert cause(first, ready / ".snakemake/slurm_logs")[0] == "time limit"
    killed = [path.read_text() for path in (ready / ".snakemake/slurm_logs/rule_clusters").rglob("*.log")]
    assert any("exceeded memory limit" in text for text in killed)
    assert attempts_at(ready, "", "clusters")[-1].state == "done"


def test_a_full_disk_while_a_shard_is_written(finished, ready):
    """The jobs report it and leave no incomplete file; with free space the same command resumes."""
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
        assert "FAILED activations (00000), attempt 1: error raised by the job" in text
        assert "No space left on device" in text
        assert not list(folder.glob("*.parquet"))
        subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
        code, output = ready.run("select", profile="slurm")
        assert code == 0, output
        assert same(ready, finished)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_node_fails_on_a_cluster_without_accounting(finished, ready):
    """sacct does not work, and a node with running jobs is set down."""
    cluster("up", "without-accounting")
    try:
        process = ready.start("select", profile="slurm", log="run.out")
        task = suspend(ready, "00000")[1].slurm_job
        node = slurm("squeue", "-h", "-j", task, "-o", "%N").strip()
        slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
        wait_for(lambda: len(attempts_at(ready, "activations", "00000")) > 1, 200)
        # unless the node has already returned to service
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], check=False, capture_output=True)
        assert exit_code(process) == 0, (ready / "run.out").read_text()
        assert same(ready, finished)
    finally:
        cluster("up")


def test_jobs_do_not_depend_on_the_environment_of_the_login_shell(finished, ready, monkeypatch):
    """A site that starts jobs with an empty environment, whatever the submission requests."""
    # settings of this machine's BLAS are kept: another kernel may round the last bit of a product differently
    kept = ",".join(name for name in os.environ if "BLAS_" in name) or "NONE"
    shim = ready / "bin/sbatch"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/bash\nexec {shutil.which("sbatch")} "${{@/--export=ALL/--export={kept}}}"\n')
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{shim.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SET_IN_LOGIN_SHELL", "1")
    process = ready.start("select", profile="slurm", log="run.out")
    process_of_job, _ = suspend(ready, "00000")
    assert "SET_IN_LOGIN_SHELL" not in process_of_job.environ()
    process_of_job.resume()
    assert exit_code(process) == 0, (ready / "run.out").read_text()
    assert same(ready, finished)


# --- several nodes ---------------------------------------------------------------------------------------


def train_with(finished, ready, **training):
    """Finetune the finished run's model again on the cluster, with other settings: (job, its log)."""
    shutil.copytree(finished / "results", ready / "results")
    shutil.rmtree(ready / MODEL)
    config = yaml.safe_load((REPO / "tests/config/small.yaml").read_text())
    config["target_model"]["training"].update(training)
    (ready / "two.yaml").write_text(yaml.safe_dump(config))
    code, output = ready.run(MODEL, profile="slurm", config=ready / "two.yaml")
    assert code == 0, output
    log = ready / RUN / "logs/finetune_model/target-random-0.2-0.log"
    return attempts(log)[-1], log.read_text()


def check_losses(finished, ready):
    """Check that the losses are those of the finished run, which one process trained."""
    logs = [(workplace / MODEL / "training_log.jsonl").read_text() for workplace in (ready, finished)]
    losses = [[json.loads(line).get("loss", 0) for line in log.splitlines()] for log in logs]
    assert losses[0][:4] == pytest.approx(losses[1][:4], rel=1e-4)
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)  # the last batch is incomplete, and padded for two processes


def test_two_nodes_train_like_one_process(finished, ready):
    """Finetuning with two processes, on two nodes of one Slurm job, has the losses of a single process."""
    train_with(finished, ready, nodes=2)
    check_losses(finished, ready)
    jobs = slurm("sacct", "-n", "-P", "-S", "now-1hour", "--format=JobID,NNodes,NodeList,WorkDir").splitlines()
    assert any("|2|n[1-2]|" in job and str(ready.folder) in job for job in jobs)


def test_two_processes_train_on_two_gpus_of_a_node(finished, ready):
    """The config says `processes: 2`; the job asks Slurm for two GPUs of one node, and sees no others."""
    attempt, log = train_with(finished, ready, processes=2)
    check_losses(finished, ready)
    assert attempt.gpus == 2
    assert '"gpus": 2' in log
    rows = slurm("sacct", "-X", "-n", "-P", "-j", attempt.slurm_job, "--format=NNodes,AllocTRES").strip().split("|")
    assert rows[0] == "1"
    assert "gres/gpu=2" in rows[1]
