"""Activations on disk: Parquet files with one fixed-size binary value per row, read as numpy arrays.

A list column is decoded number by number; the bytes of a fixed-size binary column are read 50 times faster, and
any Parquet reader still opens the file. Dimension and dtype are in the metadata of the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import ArrayLike, DTypeLike

from coincide.base.files import replacing
from coincide.base.parquet_rows import DELETE_AND_RERUN, DTYPE, StorageError, row_groups
from coincide.base.rows import ahead

ROW_GROUP = 2048  # rows; 84 MB at the paper's 20,480 numbers per row


def samples_digest(sample_ids: Iterable[str]) -> str:
    """Digest of a sequence of sample ids; their order counts."""
    digest = hashlib.sha256()
    for sample_id in sample_ids:
        digest.update(str(sample_id).encode() + b"\0")
    return digest.hexdigest()


def write_activations(
    path: str | Path, blocks: Iterable[tuple[list[str], np.ndarray]], *, dimension: int, metadata: Mapping
) -> None:
    """Write activations as one Parquet file; an interrupted write leaves no file.

    Args:
        path: file to write.
        blocks: pairs of n sample ids and an (n, dimension) array; each becomes a row group.
        dimension: numbers per row.
        metadata: what produced them (model, revision, layers, blocks): JSON values.

    Raises:
        ValueError: a block has another shape.
    """
    schema = pa.schema(
        [
            pa.field("sample_id", pa.string(), False),
            pa.field("activation", pa.binary(dimension * DTYPE.itemsize), False),
        ]
    )
    digests, sample_ids = [], []
    with (
        replacing(path) as temporary,
        pq.ParquetWriter(
            temporary,
            schema,
            compression="none",
            use_dictionary=False,
            write_statistics=["sample_id"],
            data_page_size=2**31 - 1,  # one page per row group, see `coincide.base.parquet_rows`
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
            digests.append(xxhash.xxh3_128_hexdigest(rows.data))
            sample_ids += ids
        facts = {
            **metadata,
            "dimension": dimension,
            "dtype": "float16",
            "samples": len(sample_ids),
            "samples_digest": samples_digest(sample_ids),
            "row_group_digests": digests,
        }
        writer.add_key_value_metadata({"coincide": json.dumps(facts)})


class Activations:
    """Activations of a Parquet file, or of all Parquet files of a folder in order of file name.

    `numpy.asarray(Activations(path))` is the whole matrix, iteration yields it as (n, d) float16
    blocks, and `rows` reads rows by position. The functions of `coincide` accept it in place of an
    array and read only what they need.

    Args:
        path: a .parquet file, or a folder with such files.

    Attributes:
        files: the Parquet files.
        metadata: metadata of each file, as passed to `write_activations`, and more.
        dimension: numbers per row, d.
        shape: (n, d).

    Raises:
        StorageError: the files cannot be read as activations.
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        self.files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        if not self.files:
            raise StorageError(f"{path} has no activations: it is a folder without .parquet files")
        footers = [_footer(file) for file in self.files]
        self.metadata = [_metadata(file, footer) for file, footer in zip(self.files, footers)]
        self.dimension = self.metadata[0]["dimension"]
        self.shape = (sum(m["samples"] for m in self.metadata), self.dimension)
        self._groups = []
        for file, footer in zip(self.files, footers):
            self._groups += row_groups(file, footer, self.dimension)
        self._group_starts = np.cumsum([0] + [group.rows for group in self._groups])

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        spans = zip(self._group_starts[:-1], self._group_starts[1:])
        return ahead(self.rows(np.arange(first, last)) for first, last in spans)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        whole = self.rows(np.arange(len(self)))
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def rows(self, indices: ArrayLike) -> np.ndarray:
        """Read rows by position; nothing else of the files is read.

        Args:
            indices: (n,) row positions in 0..len-1, in any order.

        Returns:
            (n, d) float16 array, in the order of `indices`.

        Raises:
            StorageError: a file ends before its rows do.
        """
        indices = np.asarray(indices, dtype=np.int64)
        result = np.empty((len(indices), self.dimension), DTYPE)
        order = np.argsort(indices, kind="stable")
        ascending = indices[order]
        bounds = np.searchsorted(ascending, self._group_starts)
        needed = np.flatnonzero(np.diff(bounds))
        for file, numbers in groupby(needed, key=lambda number: self._groups[number].file):
            with open(file, "rb", buffering=0) as source:
                for number in numbers:
                    selected = slice(bounds[number], bounds[number + 1])
                    group_rows = ascending[selected] - self._group_starts[number]
                    self._groups[number].read(source.fileno(), group_rows, result, order[selected])
        return result

    @property
    def sample_ids(self) -> np.ndarray:
        """(n,) sample ids in row order."""
        return np.concatenate([pq.read_table(f, columns=["sample_id"])["sample_id"].to_numpy() for f in self.files])

    @property
    def text_columns(self) -> np.ndarray:
        """(d,) bool mask of the text blocks: of each layer first the visual block, then the text block."""
        hidden = self.metadata[0]["hidden_size"]
        return np.tile(np.repeat([False, True], hidden), self.dimension // (2 * hidden))

    def verify(self) -> None:
        """Read everything and compare it with the digests in the metadata.

        Raises:
            StorageError: damaged content, or NaN or infinity; names the file.
        """
        for file, metadata in zip(self.files, self.metadata):
            blocks = zip(Activations(file), metadata["row_group_digests"], strict=True)
            for number, (block, digest) in enumerate(blocks):
                if xxhash.xxh3_128_hexdigest(block.data) != digest:
                    raise StorageError(f"{file} does not match its digest in row group {number}: {DELETE_AND_RERUN}")
                if not np.isfinite(block).all():
                    raise StorageError(f"{file} has NaN or infinity in row group {number}: {DELETE_AND_RERUN}")
            ids = pq.read_table(file, columns=["sample_id"])["sample_id"].to_pylist()
            if samples_digest(ids) != metadata["samples_digest"]:
                raise StorageError(f"{file} does not match its digest of sample ids: {DELETE_AND_RERUN}")


def _footer(file):
    try:
        return pq.read_metadata(file)
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"{file} is not a complete activation file ({error}): {DELETE_AND_RERUN}") from None


def _metadata(file, footer):
    try:
        return json.loads(footer.metadata[b"coincide"])
    except (KeyError, TypeError) as error:
        raise StorageError(f"{file} is not an activation file ({error}): {DELETE_AND_RERUN}") from None
