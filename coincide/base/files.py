"""Writing files so that a killed job never leaves half a file under its final name."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import escape, has_magic
from pathlib import Path
from typing import Any

import psutil

WORKFLOW_FOLDER = "COINCIDE_WORKFLOW_FOLDER"  # environment variable: the folder that contains the Snakefile


def in_workflow_folder(path: str) -> str:
    """A path of the config; one that the working folder does not have is looked up in the folder of the workflow."""
    if os.path.exists(path) or WORKFLOW_FOLDER not in os.environ:
        return path
    in_workflow = os.path.join(os.environ[WORKFLOW_FOLDER], path)
    return in_workflow if os.path.exists(in_workflow) else path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to `path` when the block ends without an error.

    Works for files and folders. The rename is atomic on any file system, because both names are in the same
    folder. The temporary file is removed if the block raises; those that killed processes of this machine left for
    the same path are removed at the start.

    Args:
        path: final name; its folder is created if it does not exist.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}.{os.uname().nodename}-"
    for leftover in path.parent.glob(f"{escape(prefix)}*.part"):
        process = leftover.name.removeprefix(prefix).split("-")[0]
        if process.isdigit() and not psutil.pid_exists(int(process)):
            shutil.rmtree(leftover, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", suffix=".part", dir=path.parent))
    try:
        yield folder / path.name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)  # a folder cannot be renamed to the name of a folder that is not empty
        os.replace(folder / path.name, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Create `target` as a hard link to `source`, or as a copy if the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def write_json(value: Any, path: str | Path) -> None:
    """Write a JSON value; an interrupted write leaves no file."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, indent=1)


def common_folder(paths: str | Path | Sequence[str | Path]) -> str:
    """The folder that files, folders and globs have in common; names of files in a dataset are relative to it.

    Args:
        paths: one path or several. A folder contributes itself, a file its folder, and a glob the folder before its
            first wildcard.
    """
    folders = []
    for path in map(Path, [paths] if isinstance(paths, str | Path) else paths):
        folder = path if os.path.isdir(path) else path.parent
        while has_magic(str(folder)) and not os.path.lexists(folder):
            folder = folder.parent
        folders.append(str(folder))
    if len(set(folders)) == 1:
        return folders[0]
    return os.path.commonpath(list(map(os.path.abspath, folders)))
