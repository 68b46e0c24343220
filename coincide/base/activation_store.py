"""Activations on disk: Parquet files of one fixed-size binary a row, read as numpy arrays.

A list column decodes number by number; the bytes of a row are read 50 times faster and any Parquet
reader still opens the file. Dimension and dtype stand in the file's metadata.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from coincide.base.errors import UserError
from coincide.base.files import replacing
from coincide.base.rows import ahead

ROW_GROUP = 2048  # rows; 84 MB at the paper's 20,480 numbers a row
DTYPE = np.dtype("<f2")
AGAIN = "delete it and run again"


class StorageError(UserError):
    """An activation file that is damaged or does not belong where it is."""


def samples_digest(sample_ids):
    """Digest of a sequence of sample ids, order included."""
    digest = hashlib.sha256()
    for sample_id in sample_ids:
        digest.update(str(sample_id).encode() + b"\0")
    return digest.hexdigest()


def write_activations(path, blocks, *, dimension, metadata):
    """Write activations as one Parquet file, whole or not at all.

    Args:
        path: file to write.
        blocks: iterable of (sample_ids, (n, dimension) array); each becomes a row group.
        dimension: numbers in a row.
        metadata: what produced them (model, revision, layers, blocks): JSON values.
    """
    schema = pa.schema(
        [
            pa.field("sample_id", pa.string(), False),
            pa.field("activation", pa.binary(dimension * DTYPE.itemsize), False),
        ]
    )
    digests, sample_ids = [], []
    with (
        replacing(path) as part,
        pq.ParquetWriter(
            part,
            schema,
            compression="none",
            use_dictionary=False,
            write_statistics=["sample_id"],
            data_page_size=2**31 - 1,  # one page a row group: the rows lie side by side in the file
        ) as writer,
    ):
        for ids, rows in blocks:
            rows = np.ascontiguousarray(rows, dtype=DTYPE)
            if rows.shape != (len(ids), dimension):
                raise ValueError(f"block of shape {rows.shape} for {len(ids)} samples of {dimension} numbers")
            if not len(rows):  # Parquet keeps no empty row group
                continue
            column = pa.FixedSizeBinaryArray.from_buffers(schema.field(1).type, len(rows), [None, pa.py_buffer(rows)])
            table = pa.Table.from_arrays([pa.array(ids, pa.string()), column], schema=schema)
            writer.write_table(table, row_group_size=len(rows))
            digests.append(xxhash.xxh3_128_hexdigest(rows))
            sample_ids += ids
        writer.add_key_value_metadata(
            {
                "coincide": json.dumps(
                    {
                        **metadata,
                        "dimension": dimension,
                        "dtype": "float16",
                        "samples": len(sample_ids),
                        "samples_digest": samples_digest(sample_ids),
                        "row_group_digests": digests,
                    }
                )
            }
        )


class Activations:
    """Activations of a Parquet file or of a folder of them, in order of file name.

    `numpy.asarray(Activations(path))` is the whole matrix, iterating yields it as (n, d) float16
    blocks, `rows` fetches rows by position. The functions of `coincide` take it as it is and read
    what they need.

    Args:
        path: a .parquet file, or a folder that holds such files.

    Raises:
        StorageError: not readable as activations.
    """

    def __init__(self, path):
        path = Path(path)
        self.files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        if not self.files:
            raise StorageError(f"{path} holds no activations")
        footers = [_footer(file) for file in self.files]
        self.metadata = [_metadata(file, footer) for file, footer in zip(self.files, footers)]
        self.dimension = self.metadata[0]["dimension"]
        self.shape = (sum(m["samples"] for m in self.metadata), self.dimension)
        self._groups = [
            group for file, footer in zip(self.files, footers) for group in _row_groups(file, footer, self.dimension)
        ]
        self._starts = np.cumsum([0] + [group.rows for group in self._groups])

    def __len__(self):
        return self.shape[0]

    def __iter__(self):
        spans = zip(self._starts[:-1], self._starts[1:])
        return ahead(self.rows(np.arange(first, last)) for first, last in spans)

    def __array__(self, dtype=None, copy=None):
        whole = self.rows(np.arange(len(self)))
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def rows(self, indices):
        """Fetch rows by position, in the order asked, reading no more of the files than these rows.

        Args:
            indices: (n,) row positions in 0..len-1.

        Returns:
            (n, d) float16 array.
        """
        indices = np.asarray(indices, dtype=np.int64)
        result = np.empty((len(indices), self.dimension), DTYPE)
        order = np.argsort(indices, kind="stable")
        positions = indices[order]
        bounds = np.searchsorted(positions, self._starts)
        file = source = None
        for group in np.flatnonzero(np.diff(bounds)):
            part = slice(bounds[group], bounds[group + 1])
            if self._groups[group].file != file:
                if source is not None:
                    os.close(source)
                file = self._groups[group].file
                source = os.open(file, os.O_RDONLY)
            self._groups[group].read(source, positions[part] - self._starts[group], result, order[part])
        if source is not None:
            os.close(source)
        return result

    @property
    def sample_ids(self):
        """(n,) sample ids in row order."""
        return np.concatenate([pq.read_table(f, columns=["sample_id"])["sample_id"].to_numpy() for f in self.files])

    @property
    def text_columns(self):
        """(d,) mask of the text blocks: each layer's visual block comes first, then its text block."""
        hidden = self.metadata[0]["hidden_size"]
        return np.tile(np.repeat([False, True], hidden), self.dimension // (2 * hidden))

    def verify(self):
        """Read everything and compare with the digests in the metadata.

        Raises:
            StorageError: damaged content, or NaN or infinite numbers; names the file.
        """
        for file, metadata in zip(self.files, self.metadata):
            blocks = zip(Activations(file), metadata["row_group_digests"], strict=True)
            for number, (block, digest) in enumerate(blocks):
                if xxhash.xxh3_128_hexdigest(block) != digest:
                    raise StorageError(f"{file} does not match its digest in row group {number}: {AGAIN}")
                if not np.isfinite(block).all():
                    raise StorageError(f"{file} holds NaN or infinite numbers in row group {number}: {AGAIN}")
            ids = pq.read_table(file, columns=["sample_id"])["sample_id"].to_pylist()
            if samples_digest(ids) != metadata["samples_digest"]:
                raise StorageError(f"{file} does not match its digest of sample ids: {AGAIN}")


@dataclass(frozen=True)
class _RowGroup:
    """Where the rows of a row group lie: `place` is that of the first, None where they do not lie side by side."""

    file: Path
    number: int
    rows: int
    dimension: int
    place: int | None

    def read(self, source, inside, result, targets):
        """Read the rows `inside` (ascending) into result[targets], those that lie side by side at once."""
        if self.place is None:
            column = pq.ParquetFile(self.file).read_row_group(self.number, columns=["activation"])["activation"]
            result[targets] = _rows(column, self.dimension)[inside]
            return
        width = self.dimension * DTYPE.itemsize
        breaks = np.flatnonzero((np.diff(inside) != 1) | (np.diff(targets) != 1)) + 1
        for first, last in zip([0, *breaks], [*breaks, len(inside)]):
            target = result[targets[first] : targets[first] + last - first].reshape(-1).view(np.uint8)
            place, done = self.place + int(inside[first]) * width, 0
            while done < len(target):  # one call reads 2 GiB at most
                if not (got := os.preadv(source, [target[done:]], place + done)):
                    raise StorageError(f"{self.file} ends before its rows do: {AGAIN}")
                done += got


def _row_groups(file, footer, dimension):
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        chunk, size = group.column(1), group.num_rows * dimension * DTYPE.itemsize
        place = None
        if chunk.compression == "UNCOMPRESSED" and _page_size(file, chunk.data_page_offset) == size:
            place = chunk.data_page_offset + chunk.total_compressed_size - size
        yield _RowGroup(file, number, group.num_rows, dimension, place)


def _footer(file):
    try:
        return pq.read_metadata(file)
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"{file} is not a whole activation file ({error}): {AGAIN}") from None


def _metadata(file, footer):
    try:
        return json.loads(footer.metadata[b"coincide"])
    except (KeyError, TypeError) as error:
        raise StorageError(f"{file} is not an activation file ({error}): {AGAIN}") from None


def _page_size(file, offset):
    """Size of the data page at an offset, from the two first fields of its header (Thrift, compact)."""
    with open(file, "rb") as source:
        source.seek(offset)
        header = source.read(16)
    if not header.startswith(b"\x15\x00\x15"):  # field 1, type: data page; field 2, size
        return None
    value = 0
    for place, byte in enumerate(header[3:]):
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            break
    return value >> 1  # zigzag


def _rows(column, dimension):
    parts = [
        np.frombuffer(c.buffers()[1], DTYPE, len(c) * dimension, c.offset * dimension * DTYPE.itemsize).reshape(
            -1, dimension
        )
        for c in column.chunks
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.empty((0, dimension), DTYPE)
