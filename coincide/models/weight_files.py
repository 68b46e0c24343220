"""Weights of checkpoints as files: read tensor by tensor, in their dtype, and written in shards.

Files are safetensors, or PyTorch files of which only tensors are read (`weights_only`), never code.
"""

import json
import pickle
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from coincide.base.errors import UserError
from coincide.base.files import write_json
from coincide.models.sizes import INDEX, tensors_in

SHARD_BYTES = 2 * 2**30  # of a file that is written; as much memory is needed


class WeightsError(UserError):
    """A file of weights that cannot be read."""


def read_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in a file of weights, from its header.

    Raises:
        WeightsError: the file cannot be read, or has more than tensors in it.
    """
    if _is_safetensors(path):
        try:
            return {name: tuple(tensor["shape"]) for name, tensor in tensors_in(path).items()}
        except ValueError as error:
            raise WeightsError(f"{path} is not a safetensors file ({error}); download it again") from None
    return {name: tuple(tensor.shape) for name, tensor in _load_pytorch_file(path).items()}


def read_tensors(path: str | Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) of a file of weights, one after the other, in their dtype, on the CPU.

    Raises:
        WeightsError: as for `read_shapes`.
    """
    if _is_safetensors(path):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)
    else:
        yield from _load_pytorch_file(path).items()


def _is_safetensors(path):
    return Path(path).suffix == ".safetensors"


def _load_pytorch_file(path):
    """The tensors of a PyTorch file, mapped into memory where its format allows that."""
    try:
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(
            f"{path} has more in it than tensors, and loading it would run its code: {reason}; use a file of tensors"
        ) from None
    except (RuntimeError, EOFError, OSError) as error:
        raise WeightsError(f"{path} is not a PyTorch file ({error}); download it again") from None
    if not isinstance(values, dict) or not all(map(torch.is_tensor, values.values())):
        raise WeightsError(f"{path} has no dict of name -> tensor; use a file of weights")
    return values


def write_shards(
    tensors: Iterable[tuple[str, torch.Tensor]], folder: str | Path, *, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write tensors as safetensors files with an index, as transformers does.

    At most one file's tensors are in memory.

    Args:
        tensors: (name, tensor), each name once.
        folder: exists.
        shard_bytes: size from which on a new file begins.
    """
    folder = Path(folder)
    names: list[list[str]] = []
    shard: dict[str, torch.Tensor] = {}
    total_size = total_parameters = 0

    def write():
        save_file(shard, folder / f"shard-{len(names)}.safetensors", metadata={"format": "pt"})
        names.append(list(shard))
        shard.clear()

    for name, tensor in tensors:
        if shard and sum(map(_bytes, shard.values())) + _bytes(tensor) > shard_bytes:
            write()
        shard[name] = tensor.contiguous()
        total_size, total_parameters = total_size + _bytes(tensor), total_parameters + tensor.numel()
    write()
    weight_map: dict[str, str] = {}
    for i, written in enumerate(names):
        final = f"model-{i + 1:05}-of-{len(names):05}.safetensors"
        (folder / f"shard-{i}.safetensors").rename(folder / final)
        weight_map |= dict.fromkeys(written, final)
    metadata: dict[str, Any] = {"total_size": total_size, "total_parameters": total_parameters}
    write_json({"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}, folder / INDEX)


def _bytes(tensor):
    return tensor.numel() * tensor.element_size()


def weight_names(index: str | Path) -> dict[str, str]:
    """File of every tensor, from an index of weights."""
    names: dict[str, str] = json.loads(Path(index).read_text())["weight_map"]
    return names
