"""Which device a stage works on."""


def pick_device(name):
    """Name of the torch device for "auto", "cpu" or "cuda"; "auto" takes the GPU where there is one."""
    if name == "auto":
        return "cuda" if cuda_devices() else "cpu"
    return name


def cuda_devices():
    """Names of the CUDA devices that this process may use."""
    import torch

    return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
