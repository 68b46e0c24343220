"""Jobs that fail, for tests of what the user gets to see."""

import os
import subprocess
import sys

from conftest import REPO


def error_in_log(folder, code):
    """The log of a job that runs this code, without the lines about its start and end.

    Fails if the job succeeds, or if its log has a traceback.
    """
    log = folder / "job.log"
    script = f"from coincide.workflow.job import prepare\nprepare({str(log)!r}, 1)\n{code}"
    environment = {**os.environ, "PYTHONPATH": str(REPO), "HF_HUB_OFFLINE": "1"}
    environment.pop("SLURM_JOB_ID", None)
    job = subprocess.run([sys.executable, "-c", script], env=environment, cwd=folder, check=False)
    lines = [line for line in log.read_text().splitlines() if not line.startswith("== ")]
    assert job.returncode == 1, lines
    assert not [line for line in lines if line.startswith("Traceback")], lines
    return lines
