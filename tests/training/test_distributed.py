"""The processes of a training end with their job."""

import os
import subprocess
import sys
import time

import psutil
from conftest import REPO

LAUNCH = """
import sys
from coincide.training.distributed import launch
launch("sleeper", {}, sys.argv[1], processes=2)
"""
SLEEPER = """
import os, sys, time
open(sys.argv[1] + f".{os.getpid()}", "w").close()
time.sleep(100)
"""


def test_processes_do_not_outlive_a_job_that_is_killed(tmp_path):
    """They would keep the GPU that the killed job no longer leases."""
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    environment = {**os.environ, "PYTHONPATH": f"{REPO}{os.pathsep}{tmp_path}"}
    job = subprocess.Popen([sys.executable, "-c", LAUNCH, tmp_path / "arguments.json"], env=environment)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("arguments.json.*"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    processes = psutil.Process(job.pid).children(recursive=True)
    assert len(processes) >= 3
    job.kill()
    job.wait()
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
