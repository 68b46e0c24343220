"""Which version of a model a name means: the commit of a hub name, or a digest of a folder."""

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub.utils import get_session
from transformers.utils import cached_file

from coincide.base.errors import UserError
from coincide.base.sections import Checkpoint
from coincide.models.sizes import header_of

log = logging.getLogger(__name__)

DESCRIBING_FILES = ("config.json", "adapter_config.json", "*.safetensors.index.json")


class HubError(UserError):
    """A hub name that cannot be resolved without a connection to the hub."""


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


def use_cache_if_unreachable() -> None:
    """Try to reach the hub once; if it cannot be reached, only its cache is used from now on.

    Otherwise every file of every model, in the cache or not, would wait for six attempts to connect.
    """
    constants = huggingface_hub.constants
    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # releases of huggingface_hub differ in their HTTP client
        log.warning("%s cannot be reached (%s); only models in the hub's cache can be used", constants.ENDPOINT, error)
        constants.HF_HUB_OFFLINE = True
        os.environ["HF_HUB_OFFLINE"] = "1"  # for the programs that this one starts


def resolve(checkpoint: Checkpoint) -> ResolvedModel:
    """The version that a checkpoint means now.

    Without a connection to the hub, it is the one in the cache.

    Raises:
        HubError: no such folder, and the model is not in the cache of the hub, which cannot be reached.
        OSError: no such model.
    """
    if Path(checkpoint.name).is_dir():
        return ResolvedModel(checkpoint.name, None, folder_digest(checkpoint.name))
    try:
        path = cached_file(checkpoint.name, "config.json", revision=checkpoint.revision)
    except OSError as error:
        if not huggingface_hub.constants.HF_HUB_OFFLINE:
            raise
        cache = huggingface_hub.constants.HF_HUB_CACHE
        raise HubError(
            f"no such folder, the hub cannot be reached (or HF_HUB_OFFLINE is set), and its cache {cache} does not "
            "have this model; set it to a hub name that this machine can reach (or that `hf download` has stored "
            "there), or to a model folder"
        ) from error
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
