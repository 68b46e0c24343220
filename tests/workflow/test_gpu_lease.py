"""A GPU is leased to one job at a time; tested with injected device counts."""

import os
import selectors
import subprocess
import sys
import time

import pytest
from conftest import REPO

from coincide.base.gpus import Gpu, machine_gpus
from coincide.workflow.gpu_lease import LeaseError, lease_gpus

LEASE = """
import os, sys, time
from coincide.workflow.gpu_lease import lease_gpus
lease_gpus(int(sys.argv[2]), sys.argv[1])
print(os.environ["CUDA_VISIBLE_DEVICES"], "torch" in sys.modules, flush=True)
time.sleep(60)
"""


@pytest.fixture
def start(tmp_path):
    """Function that starts a process which leases GPUs and keeps them."""
    processes = []

    def start(count, visible):
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": visible, "PYTHONPATH": str(REPO)}
        environment.pop("SLURM_JOB_ID", None)
        command = [sys.executable, "-c", LEASE, tmp_path / "leases", str(count)]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def devices_of(process):
    """CUDA_VISIBLE_DEVICES of a process that has its lease; it has not loaded torch before."""
    devices, torch = process.stdout.readline().split()
    assert torch == "False"
    return devices


def test_eight_jobs_get_eight_gpus(start):
    jobs = [start(1, "0,1,2,3,4,5,6,7") for _ in range(8)]
    assert sorted(map(devices_of, jobs)) == list("01234567")


def test_a_job_waits_until_a_killed_job_has_released_its_gpu(start):
    first = start(2, "4,6")
    assert devices_of(first) == "4,6"
    second = start(1, "4,6")
    time.sleep(1.5)
    assert second.poll() is None
    first.kill()
    assert devices_of(second) == "4"


def test_jobs_that_need_several_gpus_do_not_block_each_other(start):
    """Three jobs need three of four GPUs each: none keeps some while it waits for the others."""
    jobs = [start(3, "0,1,2,3") for _ in range(3)]
    with selectors.DefaultSelector() as selector:
        for job in jobs:
            selector.register(job.stdout, selectors.EVENT_READ, job)
        for _ in jobs:
            ready = selector.select(timeout=20)
            assert len(ready) == 1, "no job has a lease, or two have one"
            job = ready[0][0].data
            assert devices_of(job) == "0,1,2"
            selector.unregister(job.stdout)
            job.kill()
            job.wait()


def test_more_gpus_than_there_are_is_an_error(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(LeaseError, match="the job needs 2 GPUs, but 1 are visible"):
        lease_gpus(2, tmp_path, gpus=[Gpu("0")])


def test_a_job_without_gpus_sees_none(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert lease_gpus(0) == []
    assert machine_gpus() == []


def test_gpus_that_slurm_assigned_are_used_without_a_lease(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert lease_gpus(1, tmp_path) == ["3"]
    assert list(tmp_path.iterdir()) == []  # another job of the same node may also see its GPU as number 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")  # an allocation in which several jobs run
    assert lease_gpus(1, tmp_path) == ["2"]
    assert (tmp_path / "2.lock").exists()


def fake_driver(folder, monkeypatch, gpus):
    """An nvidia-smi that shows GPUs."""
    lines = "\n".join(f"{i}, GPU-{i}{i}ab-cdef, 81559" for i in range(gpus))
    folder.mkdir()
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\ncat <<END\n{lines}\nEND\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_the_gpus_of_a_machine(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    fake_driver(tmp_path / "bin", monkeypatch, 8)
    assert [gpu.name for gpu in machine_gpus()] == list("01234567")
    assert machine_gpus()[7] == Gpu("7", "GPU-77ab-cdef", 81559 * 2**20)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-22,5")  # the same lock whichever way a GPU is named
    assert [gpu.uuid for gpu in machine_gpus()] == ["GPU-22ab-cdef", "GPU-55ab-cdef"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,-1,2")
    assert [gpu.name for gpu in machine_gpus()] == ["1"]
