"""The device that a stage runs on."""


def pick_device(name: str) -> str:
    """Name of the torch device for "auto", "cpu" or "cuda"; "auto" is the GPU if there is one."""
    if name == "auto":
        return "cuda" if cuda_devices() else "cpu"
    return name


def cuda_devices() -> list[str]:
    """Names of the CUDA devices that this process may use."""
    import torch

    return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
