"""Which version of a model a name means: the commit of a hub name, or a digest of a folder."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from transformers.utils import cached_file

from coincide.base.sections import Checkpoint
from coincide.models.sizes import header_of

DESCRIBING_FILES = ("config.json", "adapter_config.json", "*.safetensors.index.json")


@dataclass(frozen=True)
class ResolvedModel:
    """A model and its version.

    Attributes:
        name: hub name or folder.
        revision: commit of a hub name; None for a folder.
        digest: of a folder's config and of the headers of its weights; None for a hub name.
    """

    name: str
    revision: str | None
    digest: str | None


def resolve(checkpoint: Checkpoint) -> ResolvedModel:
    """The version that a checkpoint means now.

    Without a connection to the hub, it is the one in the cache.

    Raises:
        OSError: no such model, or it is not in the cache and the hub cannot be reached.
    """
    if Path(checkpoint.name).is_dir():
        return ResolvedModel(checkpoint.name, None, folder_digest(checkpoint.name))
    path = cached_file(checkpoint.name, "config.json", revision=checkpoint.revision)
    assert path is not None  # it raises instead
    return ResolvedModel(checkpoint.name, Path(path).parent.name, None)  # …/snapshots/<commit>/config.json


def folder_digest(folder: str | Path) -> str:
    """Digest of a model folder: its config, its index of weights, and the headers of its safetensors files.

    The weights themselves are not read; `coincide.models.loading.weights_digest` covers their first megabytes.
    """
    digest = hashlib.sha256()
    for pattern in DESCRIBING_FILES:
        for path in sorted(Path(folder).glob(pattern)):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    for path in sorted(Path(folder).glob("*.safetensors")):
        digest.update(f"{path.name} {path.stat().st_size}".encode() + header_of(path))
    return digest.hexdigest()[:16]
