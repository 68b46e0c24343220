"""Parquet files as on the Hugging Face hub: turns, and images as bytes or paths."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from coincide.dataset.dataset_format import IMAGE_COLUMNS, DatasetError, FileFormat, Positions, to_json_value
from coincide.dataset.samples import UnreadableRow

ROWS_PER_BATCH = 1024


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
                columns, image_column = _columns_to_read(file, self.path)
                for batch in file.iter_batches(ROWS_PER_BATCH, columns=columns):
                    for record in _to_records(batch):
                        if isinstance(record, dict):
                            record = _with_image_names(record, image_column, f"{self.name}#{row}")
                        yield record
                        row += 1
        except (OSError, pa.ArrowException) as error:
            raise DatasetError(f"{self.path} cannot be read as Parquet after row {row}: {error}") from None

    def write(self, positions: Positions, folder: Path) -> None:
        """Write the rows at these positions with the schema of the file."""
        sorted_positions = np.sort(np.asarray(positions, np.int64))
        batch_start = 0  # position of the batch's first row
        with (
            pq.ParquetFile(self.path) as source,
            pq.ParquetWriter(self.output(folder), source.schema_arrow) as writer,
        ):
            for batch in source.iter_batches(ROWS_PER_BATCH):
                batch_end = batch_start + len(batch)
                first, last = np.searchsorted(sorted_positions, [batch_start, batch_end])
                batch_rows = sorted_positions[first:last] - batch_start
                if len(batch_rows):
                    writer.write_batch(batch.take(pa.array(batch_rows)))
                batch_start = batch_end


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


def _columns_to_read(file, path):
    """(columns to read, column with images or None): of a column with images only the paths are read.

    Reading the bytes of all images to list the records would read the whole file.
    """
    try:
        with_images = image_column(file.schema_arrow)
    except ValueError as error:
        raise DatasetError(f"{path}: {error}") from None
    leaves = [file.schema.column(i).path for i in range(len(file.schema))]  # writers name list elements differently
    columns = [name for name in file.schema_arrow.names if name != with_images]
    if with_images:
        of_images = [leaf for leaf in leaves if leaf == with_images or leaf.startswith(f"{with_images}.")]
        columns += [leaf for leaf in of_images if leaf.endswith(".path")] or of_images[:1]
    return columns, with_images


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


def _with_image_names(record, image_column, row_name):
    """The record with `images`, the names of its images, instead of the image column.

    An image that is null is no image.
    """
    if image_column is None:
        return {key: to_json_value(value) if key in IMAGE_COLUMNS else value for key, value in record.items()}
    images = record.pop(image_column)
    if not isinstance(images, list):
        images = [images]
    names = [f"{row_name}.{number}" for number, image in enumerate(images) if image is not None]
    return {**record, "images": names}
