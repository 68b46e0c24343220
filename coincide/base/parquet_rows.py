"""Direct reads of single rows of a fixed-size binary column in Parquet files.

Parquet readers decode whole row groups. The activation files of this project do not need that: each row group
holds its activations as one uncompressed data page of fixed-size values, so that its rows are adjacent in the
file and are read with one system call per run of adjacent rows, at the speed of a plain copy
(bench/storage.py). Files with any other layout (several pages, compression, a dictionary), as other writers make
them, are read through pyarrow.

How the layout is recognised: the footer of a file has the position and the compressed size of a column in a row
group, but not the number of its pages. A data page begins with a header, which has the size of the page. If that
is the size of all rows of the row group, there is only one page. Its values are then the last bytes of the
column: the column is required, so that the page has no levels, and values are plain bytes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from coincide.base.errors import UserError

DTYPE = np.dtype("<f2")
COLUMN = 1  # position of the activation column, after the sample ids
DELETE_AND_RERUN = "delete it and rerun"
DATA_PAGE_HEADER = b"\x15\x00\x15"  # field 1, int32: 0, a data page; field 2, int32: its size follows


class StorageError(UserError):
    """An activation file that is damaged or does not belong where it is."""


@dataclass(frozen=True)
class RowGroup:
    """A row group of an activation file.

    Attributes:
        file: the Parquet file.
        number: of the row group in the file.
        rows: number of rows.
        dimension: numbers per row.
        offset: position of the first row in the file, bytes; None if the rows are not adjacent.
    """

    file: Path
    number: int
    rows: int
    dimension: int
    offset: int | None

    def read(self, descriptor: int, rows: np.ndarray, result: np.ndarray, result_rows: np.ndarray) -> None:
        """Read some rows into `result[result_rows]`; runs of adjacent rows are read at once.

        Args:
            descriptor: of the open file.
            rows: (m,) positions in this row group, ascending.
            result: (n, dimension) float16 array, C-contiguous.
            result_rows: (m,) positions in the result.

        Raises:
            StorageError: the file ends before its rows do.
        """
        if self.offset is None:
            column = pq.ParquetFile(self.file).read_row_group(self.number, columns=["activation"])["activation"]
            result[result_rows] = _as_matrix(column, self.dimension)[rows]
            return
        row_bytes = self.dimension * DTYPE.itemsize
        breaks = np.flatnonzero((np.diff(rows) != 1) | (np.diff(result_rows) != 1)) + 1
        for start, stop in zip([0, *breaks], [*breaks, len(rows)]):
            target = result[result_rows[start] : result_rows[start] + stop - start]
            self._read_bytes(descriptor, self.offset + int(rows[start]) * row_bytes, target.reshape(-1).view(np.uint8))

    def _read_bytes(self, descriptor, offset, target):
        done = 0
        while done < len(target):  # one call reads at most 2 GiB
            count = os.preadv(descriptor, [target[done:]], offset + done)
            if not count:
                raise StorageError(f"{self.file} ends before its rows do: {DELETE_AND_RERUN}")
            done += count


def row_groups(file: Path, footer: pq.FileMetaData, dimension: int) -> list[RowGroup]:
    """The row groups of an activation file.

    Args:
        file: the Parquet file.
        footer: its metadata, as `pyarrow.parquet.read_metadata` returns it.
        dimension: numbers per row.
    """
    groups = []
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        column = group.column(COLUMN)
        size, offset = group.num_rows * dimension * DTYPE.itemsize, None
        if column.compression == "UNCOMPRESSED" and _data_page_size(file, column.data_page_offset) == size:
            offset = column.data_page_offset + column.total_compressed_size - size
        groups.append(RowGroup(file, number, group.num_rows, dimension, offset))
    return groups


def _data_page_size(file, offset):
    """Size in bytes of the data page whose header is at `offset`; None if there is no data page.

    The header is a struct in Thrift's compact protocol. Its first fields are the type and the uncompressed size of
    the page. An integer is stored as a varint (7 bits per byte, lowest first; the high bit marks that
    another byte follows) of its zigzag code (2n for n >= 0).
    """
    with open(file, "rb") as source:
        source.seek(offset)
        header = source.read(16)
    if not header.startswith(DATA_PAGE_HEADER):
        return None
    value = 0
    for position, byte in enumerate(header[len(DATA_PAGE_HEADER) :]):
        value |= (byte & 0x7F) << (7 * position)
        if byte < 0x80:
            break
    return value >> 1


def _as_matrix(column, dimension):
    """(n, dimension) array of a fixed-size binary column."""
    chunks = []
    for chunk in column.chunks:
        start = chunk.offset * dimension * DTYPE.itemsize
        values = np.frombuffer(chunk.buffers()[1], DTYPE, len(chunk) * dimension, start)
        chunks.append(values.reshape(-1, dimension))
    return np.concatenate(chunks) if chunks else np.empty((0, dimension), DTYPE)
