"""Files of the sources of a converted model: of a folder, or of a hub name."""

from pathlib import Path

from transformers.utils import cached_file

from coincide.base.errors import UserError
from coincide.base.sections import ModelSource


class SourceError(UserError):
    """A source that lacks a file, or that cannot be converted."""


def find_file(source: ModelSource, name: str, *, required: bool = True, download: bool = True) -> Path | None:
    """A file of a folder or of a hub name.

    Args:
        source: section of the config.
        name: of the file.
        required: it has to be there.
        download: from the hub, if it is not in the cache.

    Returns:
        None if it is not there and not required.

    Raises:
        SourceError: a required file is not there.
    """
    try:
        path = cached_file(
            source.name,
            name,
            revision=source.revision,
            local_files_only=not download,
            _raise_exceptions_for_missing_entries=required,
            _raise_exceptions_for_connection_errors=required,
        )
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise SourceError(
            f"{source.name} has no {name}: {reason}; set it to a folder with this file, or to a hub name that this "
            "machine can reach or that `hf download` has stored"
        ) from None
    return Path(path) if path else None
