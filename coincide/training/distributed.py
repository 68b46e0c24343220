"""Start a module in several processes, on this machine or on all nodes of a Slurm job."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from coincide.base.errors import UserError
from coincide.base.processes import end_with_parent

TERMINATION_TIMEOUT = 30  # seconds that the processes have to end when their job is terminated


class LaunchError(UserError):
    """The processes of a training could not be started, or one of them failed."""


def launch(
    module: str, arguments: dict[str, Any], arguments_file: Path | str, *, processes: int, nodes: int = 1
) -> None:
    """Run `python -m module arguments_file` in processes that form a torch.distributed group, and wait for them.

    Args:
        module: name of the module; it reads its arguments with `read_arguments(arguments_file)`.
        arguments: JSON values by name.
        arguments_file: where to write them, on a file system that all nodes see; removed when the processes end.
        processes: number of processes per node.
        nodes: number of nodes; more than one requires a Slurm job of that many nodes.

    Raises:
        LaunchError: no Slurm job for several nodes, or a process failed; it has printed the cause.
    """
    command = [*_srun(nodes), sys.executable, "-m", "torch.distributed.run", *_rendezvous(nodes)]
    command += [f"--nproc-per-node={processes}", "-m", module, str(arguments_file)]
    threads = max(1, int(os.environ.get("OMP_NUM_THREADS", 1)) // processes)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    arguments_file = Path(arguments_file)
    arguments_file.parent.mkdir(parents=True, exist_ok=True)
    arguments_file.write_text(json.dumps(arguments))
    # SIGTERM: torch's agent ends its processes, which would otherwise keep their GPUs after SIGKILL of this process.
    ends = partial(end_with_parent, signal.SIGTERM)
    with subprocess.Popen(command, env=environment, preexec_fn=ends) as group:
        try:
            code = group.wait()
        except BaseException:
            # SIGTERM: torch's agent ends its processes. SIGKILL would leave them running.
            group.terminate()
            try:
                group.wait(TERMINATION_TIMEOUT)
            except subprocess.TimeoutExpired:
                group.kill()
            raise
    arguments_file.unlink()
    if code:
        raise LaunchError(
            f"{module} failed with exit code {code} (training.processes: {processes}, training.nodes: {nodes}); "
            "the error is printed above"
        )


def read_arguments(arguments_file: Path | str) -> dict[str, Any]:
    """The arguments that `launch` wrote."""
    return json.loads(Path(arguments_file).read_text())


def _srun(nodes):
    """Command that starts the rest of the command line once on every node."""
    if nodes == 1:
        return []
    tasks = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    return ["srun", f"--jobid={slurm_job()}", *tasks, "--overlap", "--kill-on-bad-exit=1"]


def _rendezvous(nodes):
    """Options of torch.distributed.run that say where the nodes meet."""
    if nodes == 1:
        return ["--standalone"]
    job = slurm_job()
    # scontrol rather than environment variables: Snakemake's executor removes most of Slurm's variables.
    first_node = _scontrol("job", job, "BatchHost")
    port = 20000 + int(job) % 20000
    endpoint = f"{_scontrol('node', first_node, 'NodeAddr')}:{port}"
    return [f"--nnodes={nodes}", f"--rdzv-id={job}", "--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}"]


def slurm_job() -> str:
    """Id of the Slurm job that several nodes belong to.

    Raises:
        LaunchError: this process is not part of a Slurm job.
    """
    if "SLURM_JOB_ID" not in os.environ:
        raise LaunchError("training.nodes > 1 requires a Slurm job; set training.nodes to 1, or run on Slurm")
    return os.environ["SLURM_JOB_ID"]


def _scontrol(entity, name, field):
    """A field of `scontrol show` for a job or a node."""
    command = ["scontrol", "show", entity, name, "--oneliner"]
    result = subprocess.run(command, text=True, capture_output=True, check=False)
    if result.returncode:
        raise LaunchError(f"{' '.join(command)} failed: {result.stderr.strip()}")
    prefix = f"{field}="
    return next(word.removeprefix(prefix) for word in result.stdout.split() if word.startswith(prefix))
