"""Parquet files as on the Hugging Face hub: turns, and images as bytes or paths."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from coincide.dataset.dataset_format import IMAGE_COLUMNS, DatasetError, FileFormat, Positions, to_json_value
from coincide.dataset.samples import UnreadableRow

ROWS_PER_BATCH = 1024
ROWS_WITH_BYTES_PER_BATCH = 64  # where the bytes of images are read


class ParquetDataset(FileFormat):
    """A Parquet file with messages or conversations, and images as bytes or paths."""

    def raw(self) -> Iterator[Any]:
        """Yield the rows as records; an image that is stored in the file is replaced by its name.

        Raises:
            DatasetError: the file cannot be read.
        """
        row = 0
        try:
            with pq.ParquetFile(self.path) as file:
                columns = _Columns(file, self.path)
                for group in range(file.num_row_groups):
                    of_group, has_bytes = columns.to_read(group)
                    rows = ROWS_PER_BATCH if has_bytes is not None else ROWS_WITH_BYTES_PER_BATCH
                    for batch in file.iter_batches(rows, row_groups=[group], columns=of_group):
                        for record in _to_records(batch):
                            if isinstance(record, dict):
                                record = _with_image_names(record, columns.images, has_bytes, f"{self.name}#{row}")
                            yield record
                            row += 1
        except (OSError, pa.ArrowException) as error:
            raise DatasetError(f"{self.path} cannot be read as Parquet after row {row}: {error}") from None

    def write(self, positions: Positions, folder: Path) -> int:
        """Write the rows at these positions with the schema of the file; only row groups that have any are read."""
        sorted_positions = np.sort(np.asarray(positions, np.int64))
        with ExitStack() as stack:
            source = stack.enter_context(pq.ParquetFile(self.path))
            write, group_end = None, 0
            for group in range(source.num_row_groups):
                batch_start = group_end  # position of the batch's first row
                group_end += source.metadata.row_group(group).num_rows
                first, last = np.searchsorted(sorted_positions, [batch_start, group_end])
                if first == last:
                    continue
                if write is None:
                    write = stack.enter_context(self.writer(self.output(folder)))
                for batch in source.iter_batches(ROWS_PER_BATCH, row_groups=[group]):
                    batch_end = batch_start + len(batch)
                    first, last = np.searchsorted(sorted_positions, [batch_start, batch_end])
                    if first < last:
                        write(batch.take(pa.array(sorted_positions[first:last] - batch_start)))
                    batch_start = batch_end
            return source.metadata.num_rows

    @contextmanager
    def writer(self, path: Path) -> Iterator[Callable[[pa.RecordBatch], None]]:
        """Write batches of rows with the schema of the file."""
        with pq.ParquetFile(self.path) as source, pq.ParquetWriter(path, source.schema_arrow) as target:
            yield target.write_batch


def image_column(schema: pa.Schema) -> str | None:
    """The column of a Parquet file that has images as bytes, or as structs with bytes or a path; None without one.

    Raises:
        ValueError: there are two such columns.
    """
    names = [name for name in IMAGE_COLUMNS if name in schema.names and _has_images(schema.field(name).type)]
    if len(names) > 1:
        raise ValueError(f"the columns {' and '.join(names)} both contain images; keep one of them")
    return names[0] if names else None


def _has_images(column_type):
    while hasattr(column_type, "value_type") and not pa.types.is_dictionary(column_type):  # a list
        column_type = column_type.value_type
    if pa.types.is_struct(column_type):
        return not {"bytes", "path"}.isdisjoint(field.name for field in column_type)
    return pa.types.is_binary(column_type) or pa.types.is_large_binary(column_type)


class _Columns:
    """The columns of a file that hold the records: all, but of the images only what tells whether they exist.

    Reading the bytes of all images to list the records would read the whole file.

    Attributes:
        images: the column with images, or None.
    """

    def __init__(self, file: pq.ParquetFile, path: Path) -> None:
        self.file = file
        try:
            self.images = image_column(file.schema_arrow)
        except ValueError as error:
            raise DatasetError(f"{path}: {error}") from None
        self._others = [name for name in file.schema_arrow.names if name != self.images]
        leaves = [file.schema.column(i).path for i in range(len(file.schema))]  # writers name list elements differently
        of_images = [leaf for leaf in leaves if leaf == self.images or leaf.startswith(f"{self.images}.")]
        self._path = next((leaf for leaf in of_images if leaf.endswith(".path")), None)
        self._bytes = next((leaf for leaf in of_images if leaf.endswith(".bytes")), None)
        self._of_images = of_images
        self._number = {leaf: number for number, leaf in enumerate(leaves)}

    def to_read(self, group: int) -> tuple[list[str], bool | None]:
        """The columns to read of a row group, and whether its images have bytes: None if these are to be read, too.

        The bytes are read only if an image without a path may have them or not: where the statistics of the row group
        do not tell.
        """
        if self.images is None:
            return self._others, False
        if self._path is None:
            return [*self._others, *self._of_images[:1]], None
        has_bytes = self._have_bytes(group) if self._bytes else False
        return [*self._others, self._path, *[self._bytes] * (has_bytes is None)], has_bytes

    def _have_bytes(self, group):
        """Whether the images of a row group have bytes, all (True) or none (False); None if not known or both."""
        with_path, with_bytes = (self._count(group, leaf) for leaf in (self._path, self._bytes))
        if with_path is None or with_bytes is None:
            return None
        if not with_bytes:
            return False
        paths = [
            image["path"]
            for batch in self.file.iter_batches(ROWS_PER_BATCH, row_groups=[group], columns=[self._path])
            for image in chain.from_iterable(map(_entries, batch.column(0).to_pylist()))
        ]
        # a writer that does not count empty lists as null would also be wrong about the paths
        is_counted = with_path == sum(path is not None for path in paths)
        return True if is_counted and with_bytes == len(paths) else None

    def _count(self, group, leaf):
        """Number of values in a row group that are not null, by its statistics; None if it has none."""
        chunk = self.file.metadata.row_group(group).column(self._number[leaf])
        statistics = chunk.statistics
        if statistics is None or not statistics.has_null_count:
            return None
        return chunk.num_values - statistics.null_count


def _entries(images):
    """The images of a row that are not null."""
    return [image for image in (images if isinstance(images, list) else [images]) if image is not None]


def _to_records(batch):
    """Yield the rows of a batch as JSON values, an UnreadableRow for each that cannot be converted."""
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException):
        rows = [None] * len(batch)
        for i in range(len(batch)):
            try:
                rows[i] = batch.slice(i, 1).to_pylist()[0]
            except (ValueError, OverflowError, pa.ArrowException) as error:  # invalid UTF-8, or dates after year 9999
                rows[i] = UnreadableRow(f"a value cannot be converted ({error})")
    for row in rows:
        yield row if isinstance(row, UnreadableRow) else _to_json_values(row)


def _to_json_values(row):
    return {str(key): value if key in IMAGE_COLUMNS else to_json_value(value) for key, value in row.items()}


def _with_image_names(record, image_column, has_bytes, row_name):
    """The record with `images`, the names of its images, instead of the image column.

    An image that is null, or that has neither bytes nor a path, is no image.
    """
    if image_column is None:
        return {key: to_json_value(value) if key in IMAGE_COLUMNS else value for key, value in record.items()}
    images = record.pop(image_column)
    if not isinstance(images, list):
        images = [images]
    names = [f"{row_name}.{number}" for number, image in enumerate(images) if _is_image(image, has_bytes)]
    return {**record, "images": names}


def _is_image(image, has_bytes):
    """Whether an entry of the image column is an image; has_bytes: of an entry whose bytes were not read."""
    if not isinstance(image, dict):
        return image is not None
    return bool(has_bytes if "bytes" not in image else image["bytes"] is not None) or bool(image.get("path"))
