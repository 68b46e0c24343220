"""Start a module of this package in several processes, on this machine or on all nodes of a Slurm job."""

import json
import os
import subprocess
import sys
from pathlib import Path

STOPPED_WITHIN = 30  # seconds that processes have to end when their job is ended


def launch(module, arguments, file, *, processes, nodes=1):
    """Run `python -m module file` in processes that form a torch.distributed group, and wait for them.

    Args:
        module: name of the module; it reads its arguments with `arguments_of(file)`.
        arguments: dict of JSON values.
        file: where to write them: on a file system that all nodes see; removed when all is done.
        processes: on each node.
        nodes: of the Slurm job that this is called from, if more than one.

    Raises:
        RuntimeError: a process failed; its own words stand before.
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(arguments))
    threads = max(1, int(os.environ.get("OMP_NUM_THREADS", 1)) // processes)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [*_on_every_node(nodes), sys.executable, "-m", "torch.distributed.run", *_meeting(nodes)]
    command += [f"--nproc-per-node={processes}", "-m", module, str(file)]
    with subprocess.Popen(command, env=environment) as group:
        try:
            code = group.wait()
        except BaseException:
            group.terminate()  # its agent ends the processes; killed, it would leave them behind
            try:
                group.wait(STOPPED_WITHIN)
            except subprocess.TimeoutExpired:
                group.kill()
            raise
    file.unlink()
    if code:
        raise RuntimeError(f"{module} in {processes} processes on {nodes} nodes ended with exit code {code}")


def arguments_of(file):
    """The arguments that `launch` wrote."""
    return json.loads(Path(file).read_text())


def _on_every_node(nodes):
    if nodes == 1:
        return []
    tasks = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    return ["srun", f"--jobid={_slurm_job()}", *tasks, "--overlap", "--kill-on-bad-exit=1"]


def _meeting(nodes):
    if nodes == 1:
        return ["--standalone"]
    job = _slurm_job()
    # asked, not read from variables: the executor takes most of Slurm's away
    first = _field("job", job, "BatchHost")
    port = 20000 + int(job) % 20000
    endpoint = f"{_field('node', first, 'NodeAddr')}:{port}"
    return [f"--nnodes={nodes}", f"--rdzv-id={job}", "--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}"]


def _slurm_job():
    if "SLURM_JOB_ID" not in os.environ:
        raise RuntimeError("several nodes are asked for, and this is no Slurm job: set training.nodes to 1")
    return os.environ["SLURM_JOB_ID"]


def _field(kind, name, field):
    """A field of what Slurm's controller says of a job or node."""
    said = subprocess.run(
        ["scontrol", "show", kind, name, "--oneliner"], text=True, capture_output=True, check=True
    ).stdout
    return next(part.removeprefix(f"{field}=") for part in said.split() if part.startswith(f"{field}="))
