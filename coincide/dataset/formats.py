"""Datasets in every supported format: read their records one at a time, converted to LLaVA's, and write subsets.

| format | `annotations` | images |
| --- | --- | --- |
| LLaVA, ShareGPT, OpenAI, Alpaca | .json (a list) or .jsonl (one record per line) | files in a folder |
| Parquet | .parquet, or a folder of them: messages, conversations or texts, and images | bytes or files |
| WebDataset | .tar, or a folder of them: <key>.json and <key>.jpg, .png, … | members |

Several files, folders and globs are one dataset. An image that is stored inside a Parquet or tar file is named by its
position there: `part.parquet#<row>.<number>` or `shard.tar#<offset>+<size>`, relative to the folder that all files have
in common. `coincide.dataset.images` opens these names. Dataset positions count rows from 0, in the order of the
annotations; files of a folder or a glob are read in the order of their names.
"""

import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coincide.base.files import common_folder, replacing
from coincide.dataset.conversation import to_llava
from coincide.dataset.dataset_format import DatasetError, DatasetFormat, FileFormat, Positions
from coincide.dataset.json_formats import JsonDataset, JsonLinesDataset, json_dataset
from coincide.dataset.parquet_format import ParquetDataset
from coincide.dataset.samples import UnreadableRow
from coincide.dataset.webdataset_format import WebDataset

__all__ = [
    "DatasetError",
    "DatasetFormat",
    "JsonDataset",
    "JsonLinesDataset",
    "ParquetDataset",
    "UnreadableRow",
    "WebDataset",
    "dataset_files",
    "expand_annotations",
    "is_json",
    "iterate_records",
    "open_dataset",
    "read_records",
    "to_llava",
    "write_subset",
]

Annotations = str | Path | Sequence[str | Path]  # one file, folder or glob, or several

FORMATS: dict[str, Callable[[Path, str | None], FileFormat]] = {
    ".json": json_dataset,
    ".jsonl": json_dataset,
    ".parquet": ParquetDataset,
    ".tar": WebDataset,
}
FOLDER_FORMATS = (".parquet", ".tar")  # a dataset of these formats may be a folder of files
# train-00000-of-00004.parquet and the like: the split of a file by its name
NUMBERED_SPLIT = re.compile(r"(?P<split>.+)-\d+-of-\d+\.\w+")
KNOWN_SPLIT = re.compile(r"(?P<split>train(?:ing)?|test(?:ing)?|val(?:id(?:ation)?)?|dev|eval(?:uation)?)(?:[-_.\d].*)")


class JoinedDataset(DatasetFormat):
    """Several files as one dataset, one after the other."""

    def __init__(self, files: list[FileFormat]) -> None:
        self.files = files
        self.is_json = all(file.is_json for file in files)

    def raw(self) -> Iterator[Any]:
        """Yield the records of all files, in their order.

        Raises:
            DatasetError: a file cannot be read.
        """
        for file in self.files:
            yield from file.raw()

    def write(self, positions: Positions, folder: Path) -> int:
        """Write the rows at these positions, each file's rows to a file of the same name; each file is read once."""
        sorted_positions = np.sort(np.asarray(positions, np.int64))
        start = 0  # position of the file's first row
        for file in self.files:
            first = np.searchsorted(sorted_positions, start)
            start += file.write(sorted_positions[first:] - start, folder)
        return start


def expand_annotations(annotations: Annotations) -> list[str]:
    """The files and folders that annotations name, with globs expanded.

    A path that exists is taken as it is, whatever characters it has. A path that does not exist is returned as it is
    if it is not a glob.

    Raises:
        DatasetError: a glob matches nothing, or a path is named twice.
    """
    paths: list[str] = []
    for annotation in [annotations] if isinstance(annotations, str | Path) else annotations:
        path = str(annotation)
        if not glob.has_magic(path) or os.path.lexists(path):
            paths.append(path)
            continue
        matches = sorted(glob.glob(path, recursive=True))
        if not matches:
            raise DatasetError(f"{path} matches no files: set dataset.annotations to your dataset")
        paths += matches
    repeated = [path for path, count in Counter(map(os.path.abspath, paths)).items() if count > 1]
    if repeated:
        raise DatasetError(f"{repeated[0]} is named twice; its samples would be in the dataset twice")
    return paths


def is_json(annotations: Annotations) -> bool:
    """Whether the dataset consists of .json files, so that coreset.json is already in its format."""
    return all(path.endswith(".json") for path in expand_annotations(annotations))


def open_dataset(annotations: Annotations) -> DatasetFormat:
    """Open a dataset; the suffix of each file, or of the files in a folder, tells the format.

    Args:
        annotations: a file, a folder, or a glob; or a list of them.

    Raises:
        DatasetError: a path does not exist or is not in a supported format, or a folder has several splits.
    """
    files = dataset_files(annotations)
    root = Path(common_folder(annotations))
    names = [os.path.relpath(file, root) for file in files]
    datasets = [FORMATS[file.suffix](file, name) for file, name in zip(files, names)]
    return datasets[0] if len(datasets) == 1 else JoinedDataset(datasets)


def dataset_files(annotations: Annotations) -> list[Path]:
    """The files of a dataset, with folders and globs expanded.

    Raises:
        DatasetError: as for `open_dataset`.
    """
    files = [file for path in expand_annotations(annotations) for file in _list_files(Path(path))]
    if not files:
        raise DatasetError("dataset.annotations is an empty list; set it to your dataset")
    return files


def _list_files(path):
    """The dataset files at a path: the file itself, or those of a folder by name."""
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError as error:  # a name that is too long
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from None
    if is_file:
        if path.suffix not in FORMATS:
            raise DatasetError(
                f"{path}: unknown dataset format; dataset.annotations must be a file that ends in {', '.join(FORMATS)}"
            )
        return [path]
    if not is_folder:
        raise DatasetError(f"{path} does not exist: set dataset.annotations to your dataset")
    of_suffix = {
        suffix: sorted(file for file in path.glob(f"*{suffix}") if not file.name.startswith("."))
        for suffix in FOLDER_FORMATS
    }
    present = [suffix for suffix, files in of_suffix.items() if files]
    if not present:
        raise DatasetError(
            f"the folder {path} contains no {' or '.join(FOLDER_FORMATS)} files; set dataset.annotations to your "
            f"dataset, or to a glob such as {path / '*.jsonl'}"
        )
    if len(present) > 1:
        raise DatasetError(
            f"the folder {path} contains {' and '.join(present)} files; set dataset.annotations to a glob such as "
            f"{path / ('*' + present[0])}"
        )
    files = of_suffix[present[0]]
    _check_splits(path, files)
    return files


def _check_splits(folder, files):
    """Refuse a folder with several splits: it is not the whole dataset that is to be selected from."""
    splits = Counter(_split(file.name) for file in files)
    splits.pop(None, None)
    if len(splits) > 1:
        listed = ", ".join(f"{split} ({count} file{'s' * (count > 1)})" for split, count in splits.items())
        chosen = next((split for split in splits if split.startswith("train")), next(iter(splits)))
        raise DatasetError(
            f"the folder {folder} has several splits: {listed}; choose one with a glob, such as "
            f"{folder / f'{chosen}*{files[0].suffix}'}, or several with a list of globs; all of them are "
            f"{folder / f'*{files[0].suffix}'}"
        )


def _split(name):
    """The split that a file name names; None if it names none."""
    match = NUMBERED_SPLIT.fullmatch(name) or KNOWN_SPLIT.fullmatch(name)
    return match["split"] if match else None


def write_subset(dataset: DatasetFormat, positions: Positions, folder: str | Path) -> None:
    """Write the rows at these positions in the dataset's format, as a folder that appears when it is complete."""
    with replacing(folder) as temporary_folder:
        temporary_folder.mkdir()
        dataset.write(positions, temporary_folder)


def iterate_records(path: str | Path) -> Iterator[Any]:
    """The records of a dataset one at a time, converted to LLaVA's."""
    return iter(open_dataset(path))


def read_records(path: str | Path) -> list[Any]:
    """Read all records of a dataset into memory, converted to LLaVA's."""
    return list(iterate_records(path))
