"""Activations on disk: Parquet files of one fixed-size binary a row, read as numpy arrays.

A list column decodes number by number; the bytes of a row are read 50 times faster and any Parquet
reader still opens the file. Dimension and dtype stand in the file's metadata.
"""

import hashlib
import json
import os
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from coincide.files import replacing

ROW_GROUP = 2048  # rows; 84 MB at the paper's 20,480 numbers a row
DTYPE = np.dtype("<f2")


class StorageError(ValueError):
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
    content, sample_ids = hashlib.sha256(), []
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
            column = pa.FixedSizeBinaryArray.from_buffers(schema.field(1).type, len(rows), [None, pa.py_buffer(rows)])
            table = pa.Table.from_arrays([pa.array(ids, pa.string()), column], schema=schema)
            writer.write_table(table, row_group_size=max(len(rows), 1))
            content.update(rows)
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
                        "content_digest": content.hexdigest(),
                    }
                )
            }
        )


class Activations:
    """Activations of a Parquet file or of a folder of them, in order of file name.

    Iterating yields (n, d) float16 row blocks, so it can be given to the functions of `coincide`
    that take row blocks. `numpy.concatenate(list(activations))` is the whole matrix.

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
        self.metadata = [_metadata(file) for file in self.files]
        self.dimension = self.metadata[0]["dimension"]
        self.shape = (sum(m["samples"] for m in self.metadata), self.dimension)

    def __len__(self):
        return self.shape[0]

    def __iter__(self):
        for file in self.files:
            reader = pq.ParquetFile(file)
            for group in range(reader.num_row_groups):
                yield _rows(reader.read_row_group(group, columns=["activation"])["activation"], self.dimension)

    def rows(self, indices):
        """Fetch rows by position, in the order asked, reading no more of the files than these rows.

        Args:
            indices: (n,) row positions in 0..len-1.

        Returns:
            (n, d) float16 array.
        """
        indices = np.asarray(indices, dtype=np.int64)
        result = np.empty((len(indices), self.dimension), DTYPE)
        groups = np.searchsorted(self._starts, indices, side="right") - 1
        for group in np.unique(groups):
            wanted = np.flatnonzero(groups == group)
            self._fetch(group, indices[wanted] - self._starts[group], result, wanted)
        return result

    @cached_property
    def _groups(self):
        """(file, row group in it, place of the first row's bytes, rows) of every row group.

        The place is None where the rows do not lie side by side in the file.
        """
        groups = []
        for file in self.files:
            metadata = pq.read_metadata(file)
            for number in range(metadata.num_row_groups):
                chunk = metadata.row_group(number).column(1)
                size = metadata.row_group(number).num_rows * self.dimension * DTYPE.itemsize
                place = None
                if chunk.compression == "UNCOMPRESSED" and _page_size(file, chunk.data_page_offset) == size:
                    place = chunk.data_page_offset + chunk.total_compressed_size - size
                groups.append((file, number, place, metadata.row_group(number).num_rows))
        return groups

    @cached_property
    def _starts(self):
        return np.cumsum([0] + [rows for *_, rows in self._groups])[:-1]

    def _fetch(self, group, inside, result, wanted):
        file, number, place, _ = self._groups[group]
        if place is None:
            block = _rows(
                pq.ParquetFile(file).read_row_group(number, columns=["activation"])["activation"], self.dimension
            )
            result[wanted] = block[inside]
            return
        width = self.dimension * DTYPE.itemsize
        with open(file, "rb", buffering=0) as source:
            for row, target in zip(inside, wanted):
                got = os.preadv(source.fileno(), [result[target]], place + int(row) * width)
                if got != width:
                    raise StorageError(f"{file} ends before its rows do: delete it and run again")

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
            content = hashlib.sha256()
            for block in Activations(file):
                content.update(block)
                if not np.isfinite(block).all():
                    raise StorageError(f"{file} holds NaN or infinite numbers: delete it and run again")
            ids = pq.read_table(file, columns=["sample_id"])["sample_id"].to_pylist()
            if content.hexdigest() != metadata["content_digest"] or samples_digest(ids) != metadata["samples_digest"]:
                raise StorageError(f"{file} does not match its digest: delete it and run again")


def _metadata(file):
    try:
        return json.loads(pq.read_metadata(file).metadata[b"coincide"])
    except (OSError, pa.ArrowException, KeyError, TypeError) as error:
        raise StorageError(f"{file} is not a whole activation file ({error}): delete it and run again") from None


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
