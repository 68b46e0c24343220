"""Datasets in every supported format: read their records one at a time, converted to LLaVA's, and write subsets.

| format | `annotations` | images |
| --- | --- | --- |
| LLaVA, ShareGPT | a .json file (a list) or a .jsonl file (one record per line) | files in a folder |
| Parquet | a .parquet file or a folder of them: messages, conversations or texts, and images | bytes or files |
| WebDataset | a .tar file or a folder of them: <key>.json and <key>.jpg, .png, … | members |

An image that is stored inside a Parquet or tar file is named by its position there: `part.parquet#<row>.<number>` or
`shard.tar#<offset>+<size>`. `coincide.dataset.images` opens these names. Dataset positions count rows from 0; files of
a folder are read in the order of their names.
"""

import json
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import ijson
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from coincide.base.errors import UserError
from coincide.base.files import replacing
from coincide.dataset.conversation import to_llava

IMAGE_EXTENSIONS = {"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm"}
IMAGE_COLUMNS = ("images", "image")
ROWS_PER_BATCH = 1024

Positions = Sequence[int] | NDArray[np.integer]


class DatasetError(UserError):
    """A dataset that cannot be used; the message names the file and what to do."""


@dataclass(frozen=True)
class UnreadableRow:
    """A row of a dataset that could not be parsed as a record.

    Attributes:
        detail: what is wrong with it.
    """

    detail: str


class DatasetFormat(ABC):
    """A dataset in one of the formats. Iterating over it yields its records converted to LLaVA's.

    Attributes:
        is_json: the dataset is a JSON list, so coreset.json holds its records unchanged.
    """

    is_json = False

    @abstractmethod
    def raw(self) -> Iterator[Any]:
        """Yield the records as they are in the files, an UnreadableRow for each row that cannot be parsed.

        Raises:
            DatasetError: a file cannot be read.
        """

    def __iter__(self) -> Iterator[Any]:
        return map(to_llava, self.raw())

    def pick(self, positions: Positions) -> Iterator[Any]:
        """Yield the raw records at these positions, in the order of the dataset."""
        is_picked = np.zeros(max(positions, default=-1) + 1, bool)
        is_picked[positions] = True
        for position, record in enumerate(self.raw()):
            if position >= len(is_picked):
                return
            if is_picked[position]:
                yield record

    def write(self, positions: Positions, folder: Path) -> None:
        """Write the rows at these positions to a folder, in the dataset's format and under its file names."""
        raise NotImplementedError(f"{type(self).__name__} is written as coreset.json")


class JsonDataset(DatasetFormat):
    """A JSON file that is a list of records. Only one record is in memory at a time."""

    is_json = True

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def raw(self) -> Iterator[Any]:
        """Yield the records of the list.

        Raises:
            DatasetError: the file is not JSON, not a list, or an empty list.
        """
        count = 0
        try:
            with open(self.path, "rb") as file:
                start = file.read(64).lstrip()[:1]
                file.seek(0)
                if start != b"[":
                    raise DatasetError(f"{self.path} must contain a JSON list of samples; fix or regenerate the file")
                for record in ijson.items(file, "item", use_float=True):
                    count += 1
                    yield record
        except FileNotFoundError:
            raise DatasetError(f"{self.path} does not exist: set dataset.annotations to your dataset") from None
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise DatasetError(
                f"{self.path} is not valid JSON after {count} samples ({error}); fix or regenerate the file"
            ) from None
        if not count:
            raise DatasetError(f"{self.path} contains an empty list; it must contain at least one sample")


class JsonLinesDataset(DatasetFormat):
    """A file with one JSON record per line. Blank lines are skipped."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def raw(self) -> Iterator[Any]:
        """Yield the record of each line, an UnreadableRow for a line that is not JSON."""
        with open(self.path, "rb") as file:
            for line in file:
                if line.strip():
                    yield _parse_json(line)

    def write(self, positions: Positions, folder: Path) -> None:
        """Write the lines at these positions, unchanged."""
        picked = set(map(int, positions))
        with open(self.path, "rb") as source, open(Path(folder) / self.path.name, "wb") as target:
            lines = (line for line in source if line.strip())
            target.writelines(line for position, line in enumerate(lines) if position in picked)


def _parse_json(text):
    try:
        return json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        return UnreadableRow(f"not valid JSON ({error})")


class ParquetDataset(DatasetFormat):
    """Parquet files as on the Hugging Face hub: messages or conversations, and images as bytes or paths."""

    def __init__(self, path: str | Path) -> None:
        self.files = _list_files(path, ".parquet")

    def raw(self) -> Iterator[Any]:
        """Yield the rows as records; an image stored as bytes is replaced by its name.

        Raises:
            DatasetError: a file cannot be read.
        """
        for path in self.files:
            row = 0
            try:
                file = pq.ParquetFile(path)
                columns, image_column = _columns_to_read(file.schema_arrow)
                for batch in file.iter_batches(ROWS_PER_BATCH, columns=columns):
                    for record in batch.to_pylist():
                        yield _with_image_names(record, image_column, f"{path.name}#{row}")
                        row += 1
            except (OSError, pa.ArrowException) as error:
                raise DatasetError(f"{path} cannot be read as Parquet after row {row}: {error}") from None

    def write(self, positions: Positions, folder: Path) -> None:
        """Write the rows at these positions, each file's rows to a file of the same name."""
        sorted_positions = np.sort(np.asarray(positions, np.int64))
        batch_start = 0  # dataset position of the batch's first row
        for path in self.files:
            source, writer = pq.ParquetFile(path), None
            for batch in source.iter_batches(ROWS_PER_BATCH):
                batch_end = batch_start + len(batch)
                first, last = np.searchsorted(sorted_positions, [batch_start, batch_end])
                batch_rows = sorted_positions[first:last] - batch_start
                if len(batch_rows):
                    writer = writer or pq.ParquetWriter(Path(folder) / path.name, source.schema_arrow)
                    writer.write_batch(batch.take(pa.array(batch_rows)))
                batch_start = batch_end
            if writer:
                writer.close()


def _list_files(path, suffix):
    """A dataset's files: those of a folder with this suffix, by name, or the one file."""
    path = Path(path)
    return sorted(path.glob(f"*{suffix}")) if path.is_dir() else [path]


def _columns_to_read(schema):
    """(columns to read, column with image bytes or None): of a column with image bytes only the paths are read.

    Reading the bytes of all images to list the records would read the whole file.
    """
    columns, image_column = [], None
    for field in schema:
        is_list = pa.types.is_list(field.type) or pa.types.is_large_list(field.type)
        item_type = field.type.value_type if is_list else field.type
        if field.name in IMAGE_COLUMNS and (pa.types.is_struct(item_type) or pa.types.is_binary(item_type)):
            image_column = field.name
            has_path = pa.types.is_struct(item_type) and any(child.name == "path" for child in item_type)
            item_column = f"{field.name}.list.element" if is_list else field.name
            columns.append(f"{item_column}.path" if has_path else item_column)
        else:
            columns.append(field.name)
    return columns, image_column


def _with_image_names(record, image_column, row_name):
    """The record with `images`, the names of its images, instead of the image column."""
    if image_column is None:
        return record
    images = record.pop(image_column)
    if images is None:
        images = []
    elif not isinstance(images, list):
        images = [images]
    return {**record, "images": [f"{row_name}.{number}" for number in range(len(images))]}


class WebDataset(DatasetFormat):
    """WebDataset tar files: consecutive members whose names are equal up to the first dot are one sample."""

    def __init__(self, path: str | Path) -> None:
        self.files = _list_files(path, ".tar")

    def raw(self) -> Iterator[Any]:
        """Yield each sample's JSON record with the names of its images.

        Raises:
            DatasetError: a file cannot be read.
        """
        for path in self.files:
            for members in _iterate_samples(path):
                yield _read_record(path, members)

    def write(self, positions: Positions, folder: Path) -> None:
        """Write the samples at these positions, each file's samples to a file of the same name."""
        picked, position = set(map(int, positions)), 0
        for path in self.files:
            picked_members = []
            for members in _iterate_samples(path):
                if position in picked:
                    picked_members += members
                position += 1
            if picked_members:
                with tarfile.open(path, "r:") as source, tarfile.open(Path(folder) / path.name, "w") as target:
                    for member in picked_members:
                        target.addfile(member, source.extractfile(member))


def _iterate_samples(path):
    """Yield the list of tar members of each sample."""
    try:
        with tarfile.open(path, "r:") as file:
            for _, members in groupby(filter(tarfile.TarInfo.isfile, file), _sample_key):
                yield list(members)
    except (OSError, tarfile.TarError) as error:
        raise DatasetError(f"{path} cannot be read as a tar file: {error}") from None


def _sample_key(member):
    """(folder, name up to the first dot)."""
    folder, _, name = member.name.rpartition("/")
    return folder, name.partition(".")[0]


def _extension(member):
    _, dot, extension = member.name.rpartition("/")[2].rpartition(".")
    return extension.lower() if dot else ""


def _read_record(path, members):
    """The record of a sample's .json member, with the names of its image members."""
    json_member = next((member for member in members if _extension(member) == "json"), None)
    if json_member is None:
        return UnreadableRow(f"{members[0].name} in {path.name} has no .json member with the same key")
    with open(path, "rb") as file:
        file.seek(json_member.offset_data)
        record = _parse_json(file.read(json_member.size))
    if not isinstance(record, dict):
        return record
    record = {key: value for key, value in record.items() if key not in IMAGE_COLUMNS}
    image_members = sorted((m for m in members if _extension(m) in IMAGE_EXTENSIONS), key=lambda m: m.name)
    images = [f"{path.name}#{member.offset_data}+{member.size}" for member in image_members]
    default_id = members[0].name.partition(".")[0]
    return {"id": default_id, **record, **({"images": images} if images else {})}


FORMATS: dict[str, Callable[[Path], DatasetFormat]] = {
    ".json": JsonDataset,
    ".jsonl": JsonLinesDataset,
    ".parquet": ParquetDataset,
    ".tar": WebDataset,
}
FOLDER_FORMATS = (".parquet", ".tar")  # a dataset of these formats may be a folder of files


def open_dataset(annotations: str | Path) -> DatasetFormat:
    """Open the dataset at a path; the suffix of the file, or of the files in the folder, tells the format.

    Raises:
        DatasetError: the path does not exist or is not in a supported format.
    """
    path = Path(annotations)
    if path.is_file():
        if path.suffix not in FORMATS:
            raise DatasetError(
                f"{path}: unknown dataset format; dataset.annotations must be a file that ends in {', '.join(FORMATS)}"
            )
        return FORMATS[path.suffix](path)
    if path.is_dir():
        for suffix in FOLDER_FORMATS:
            if any(path.glob(f"*{suffix}")):
                return FORMATS[suffix](path)
        raise DatasetError(
            f"the folder {path} contains no {' or '.join(FOLDER_FORMATS)} files; "
            "set dataset.annotations to your dataset"
        )
    raise DatasetError(f"{path} does not exist: set dataset.annotations to your dataset")


def write_subset(dataset: DatasetFormat, positions: Positions, folder: str | Path) -> None:
    """Write the rows at these positions in the dataset's format, as a folder that appears when it is complete."""
    with replacing(folder) as temporary_folder:
        temporary_folder.mkdir()
        dataset.write(positions, temporary_folder)


def coreset_records(dataset: DatasetFormat, positions: Positions) -> Iterable[Any]:
    """Records at these positions for a trainer: unchanged from a JSON dataset, converted to LLaVA's from others."""
    records = dataset.pick(positions)
    return records if dataset.is_json else map(to_llava, records)


def read_records(path: str | Path) -> list[Any]:
    """Read all records of a dataset into memory, converted to LLaVA's."""
    return list(open_dataset(path))
