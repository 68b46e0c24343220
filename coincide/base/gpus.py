"""The GPUs of this machine, without loading torch."""

import os
import shutil
import subprocess
from typing import NamedTuple

NVIDIA_SMI_TIMEOUT = 20  # seconds


class Gpu(NamedTuple):
    """A GPU of this machine.

    Attributes:
        name: as CUDA_VISIBLE_DEVICES names it: a number, or the beginning of a UUID.
        uuid: the same for every spelling of the name; None if the driver does not tell.
        memory: bytes; None if the driver does not tell.
    """

    name: str
    uuid: str | None = None
    memory: int | None = None


def machine_gpus() -> list[Gpu]:
    """The GPUs that this process may use.

    CUDA_VISIBLE_DEVICES limits them, as for every CUDA program; Slurm sets it in its jobs.
    """
    present = _nvidia_smi()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    gpus: list[Gpu] = []
    for name in map(str.strip, visible.split(",")):
        if name in ("", "-1"):  # CUDA ignores the rest of the list
            break
        described = next((gpu for gpu in present if gpu.name == name or (gpu.uuid or "").startswith(name)), None)
        gpus.append(Gpu(name, described and described.uuid, described and described.memory))
    return gpus


def _nvidia_smi():
    """All GPUs that the driver shows; none without a driver."""
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"]
    try:
        result = subprocess.run(command, text=True, capture_output=True, timeout=NVIDIA_SMI_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    if result.returncode:
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in result.stdout.splitlines() if line.strip()]
    return [Gpu(index, uuid, int(mib) * 2**20 if mib.isdigit() else None) for index, uuid, mib in rows]
