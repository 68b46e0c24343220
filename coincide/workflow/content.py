"""Whether the content of the files that a run reads has changed, whatever their modification times say.

Snakemake compares modification times, and checksums only of files up to a megabyte. So the workflow keeps what it
compares by content in small files of its own:

- next to the manifest, names, sizes, times and digests of the dataset's files (`record_content`). When a start finds
  another time, the file is read again (`dataset_content`), and only another content makes the manifest a new one.
- next to each coreset.json, its digest. It is only written when it differs (`write_digest`), so its modification time
  is that of the last change, and finetuning and evaluation depend on it instead of on coreset.json.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coincide.base.files import replacing, write_json
from coincide.dataset.formats import Annotations, DatasetError, dataset_files


@dataclass(frozen=True)
class DatasetContent:
    """The content of a dataset's files, compared with that of the manifest.

    Attributes:
        version: "" until the content changes, then a digest; the same for the same content.
        is_recorded: the content is that of the manifest.
    """

    version: str
    is_recorded: bool

    @property
    def is_other(self) -> bool:
        """The content is another one than that of the manifest, and not only unknown."""
        return bool(self.version) and not self.is_recorded


def dataset_content(annotations: Annotations, record: str | Path) -> DatasetContent:
    """Compare the content of a dataset's files with that of the manifest.

    A file is only read if its modification time changed and its size did not.

    Args:
        annotations: of the config.
        record: file written by `record_content`; its times are brought up to date if only they changed.
    """
    try:
        recorded = json.loads(Path(record).read_text())
        now = _describe(annotations)
    except (FileNotFoundError, DatasetError):  # no manifest yet, or files that the workflow has yet to write
        return DatasetContent("", is_recorded=False)
    if now == _without_digests(recorded["files"]):
        return DatasetContent(recorded["version"], is_recorded=True)
    same_sizes = {name: size for name, (size, _) in now.items()} == {
        name: file["size"] for name, file in recorded["files"].items()
    }
    if same_sizes:
        touched = [name for name, (_, time) in now.items() if time != recorded["files"][name]["time"]]
        digests = _digests(touched)
        if all(digests[name] == recorded["files"][name]["digest"] for name in touched):
            for name in touched:
                recorded["files"][name]["time"] = now[name][1]
            with contextlib.suppress(OSError):  # results of another user; the files are read again next time
                write_json(recorded, record)
            return DatasetContent(recorded["version"], is_recorded=True)
    return DatasetContent(hashlib.sha256(json.dumps(now).encode()).hexdigest()[:16], is_recorded=False)


def read_content(annotations: Annotations, *, threads: int = 1) -> dict[str, Any]:
    """Size, modification time and digest of each file of a dataset, for `record_content`."""
    described = _describe(annotations)
    digests = _digests(list(described), threads)
    return {name: {"size": size, "time": time, "digest": digests[name]} for name, (size, time) in described.items()}


def record_content(files: dict[str, Any], version: str, record: str | Path) -> None:
    """Write the content that a manifest was made from.

    Args:
        files: from `read_content`, called before the manifest was made.
        version: `DatasetContent.version` when the job was planned.
        record: file to write.
    """
    write_json({"version": version, "files": files}, record)


def _describe(annotations):
    """dict of file -> (size, modification time in nanoseconds)."""
    stats = {str(file): os.stat(file) for file in dataset_files(annotations)}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def _without_digests(files):
    return {name: (file["size"], file["time"]) for name, file in files.items()}


def _digests(names, threads=1):
    """dict of file -> SHA-256."""
    with ThreadPoolExecutor(threads) as pool:
        return dict(zip(names, pool.map(file_digest, names)))


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_digest(path: str | Path) -> None:
    """Write the digest of a file next to it, as sha256sum does: x.json -> x.sha256; only if it differs."""
    path = Path(path)
    line = f"{file_digest(path)}  {path.name}\n"
    target = path.with_suffix(".sha256")
    if not target.is_file() or target.read_text() != line:
        with replacing(target) as temporary:
            temporary.write_text(line)


def changed_dataset_text(folder: str) -> str:
    """What a start says when the dataset's files have another content than the manifest of a run."""
    return (
        f"{folder}: the dataset changed since its manifest was made. Reused: the models of the config, and finished "
        "trainings whose coreset stays the same. Computed again: manifest, activations and selection"
    )


def kept_text(planned: Iterable[tuple[str, str]], executed: Iterable[str]) -> str | None:
    """What a run says at its end about planned trainings and evaluations that were not necessary; None if all were.

    Args:
        planned: (rule, first output) of the jobs that the start of the run planned.
        executed: first outputs of the jobs that ran.
    """
    executed = set(executed)
    counts = []
    nouns = {"finetune_model": "models", "evaluate_model": "evaluations", "difficulty": "measurements of difficulty"}
    for rule, noun in nouns.items():
        outputs = [output for name, output in planned if name == rule]
        kept = len(set(outputs) - executed)
        if kept:
            counts.append(f"{kept} of {len(outputs)} {noun}")
    if not counts:
        return None
    listed = " and ".join([*[", ".join(counts[:-1])] * bool(counts[1:]), counts[-1]])
    return f"kept {listed}: their coresets have the same content as before"
