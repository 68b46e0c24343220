"""What all dataset formats have in common."""

import base64
import datetime
import math
import posixpath
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coincide.base.errors import UserError
from coincide.dataset.conversation import to_llava

IMAGE_COLUMNS = ("images", "image")

Positions = Sequence[int] | NDArray[np.integer]


class DatasetError(UserError):
    """A dataset that cannot be used; the message names the file and what to do."""


class DatasetFormat(ABC):
    """A dataset in one of the formats. Iterating over it yields its records converted to LLaVA's.

    Attributes:
        is_json: the dataset is JSON lists, so coreset.json may have its records in their own structure.
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

    @abstractmethod
    def write(self, positions: Positions, folder: Path) -> int:
        """Write the rows at these positions to a folder, in the dataset's format and under its file names.

        Positions after the last row are ignored, and a file without a row to write is not written.

        Returns:
            number of rows of the dataset.
        """


class FileFormat(DatasetFormat):
    """A dataset that is one file.

    Args:
        path: the file.
        name: its name in the names of images inside it, and in a written subset.
    """

    def __init__(self, path: str | Path, name: str | None = None) -> None:
        self.path = Path(path)
        self.name = name or self.path.name

    def write(self, positions: Positions, folder: Path) -> int:
        """Write the rows at these positions; the file is read once."""
        picked = iter(np.sort(np.asarray(positions, np.int64)))
        next_picked, count, write = next(picked, None), 0, None
        with ExitStack() as stack:
            for row in self.rows():
                if count == next_picked:
                    if write is None:
                        write = stack.enter_context(self.writer(self.output(folder)))
                    write(row)
                    next_picked = next(picked, None)
                count += 1
        return count

    def rows(self) -> Iterator[Any]:
        """Yield the rows as `writer` writes them; default: the raw records."""
        return self.raw()

    @abstractmethod
    def writer(self, path: Path) -> AbstractContextManager[Callable[[Any], None]]:
        """Context of a new file; its value is a function that writes a row."""

    def output(self, folder: Path) -> Path:
        """The path of this file in a written subset; its folder is created."""
        path = Path(folder) / posixpath.normpath(self.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def to_json_value(value: Any) -> Any:
    """Convert a value of a Parquet file to one that JSON has.

    Text in binary columns becomes text, other bytes base64, dates and times ISO 8601, durations seconds, decimals
    and other types text, maps objects, and NaN and Infinity null.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): to_json_value(item) for key, item in value.items()}
    if isinstance(value, list):
        if value and all(isinstance(item, tuple) for item in value):  # a map
            return {str(key): to_json_value(item) for key, item in value}
        return [to_json_value(item) for item in value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    return str(value)
