"""Writing files so that a killed job never leaves half a file under a final name."""

import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from glob import escape
from pathlib import Path

import psutil


@contextmanager
def replacing(path):
    """Give a temporary path beside `path`; rename it into place when the block ends well.

    Works for files and folders. The temporary name is in the same folder, so that the rename is
    atomic on any file system; it is removed when the block raises. What a killed process of this
    machine left behind for the same path is removed too.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    host = os.uname().nodename
    for left in path.parent.glob(f".{escape(path.name)}.{host}-*.part"):
        process = left.name.removeprefix(f".{path.name}.{host}-").split("-")[0]
        if process.isdigit() and not psutil.pid_exists(int(process)):
            shutil.rmtree(left, ignore_errors=True)
    prefix = f".{path.name}.{host}-{os.getpid()}-"
    workplace = Path(tempfile.mkdtemp(prefix=prefix, suffix=".part", dir=path.parent))
    try:
        yield workplace / path.name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)  # a folder can't be renamed over a full one
        os.replace(workplace / path.name, path)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


def link_or_copy(source, target):
    """Put a file under a second name; a copy of it where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def write_json(value, path):
    """Write a JSON value, whole or not at all."""
    with replacing(path) as part, open(part, "w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, indent=1)
