"""Records of a training in a memory-mapped file: the processes of a machine share one copy in the page cache."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from coincide.base.files import replacing
from coincide.dataset.conversation import text_length

KEYS = ("id", "image", "conversations")  # what training reads
SCHEMA = pa.schema([("record", pa.binary()), ("text_length", pa.int64())])
ROWS_PER_BATCH = 4096
DIGEST = b"digest"


class RecordTable(Sequence[dict[str, Any]]):
    """LLaVA records in a file written by `write_record_table`, read when they are needed.

    Args:
        path: the file; it must not change while the table is in use.

    Attributes:
        digest: of the content of all records.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        last = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1)
        self.digest = last.custom_metadata[DIGEST].decode()
        self._table = reader.read_all()

    def __reduce__(self) -> tuple[type["RecordTable"], tuple[Path]]:
        return type(self), (self.path,)

    def __len__(self) -> int:
        return self._table.num_rows

    @overload
    def __getitem__(self, row: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, row: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, row: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        """The record of a row, or the list of those of a slice."""
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        return json.loads(self._table["record"][int(row)].as_py())

    @property
    def text_lengths(self) -> NDArray[np.int64]:
        """(n,) length of the text of each record, as `text_length` measures it."""
        return self._table["text_length"].to_numpy()


def write_record_table(records: Iterable[dict[str, Any]], path: str | Path) -> RecordTable:
    """Write records for `RecordTable`, a few thousand at a time; of each, only what training reads is kept."""
    digest = hashlib.sha256()
    iterator = iter(records)
    with (
        replacing(path) as temporary,
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_file(file, SCHEMA) as writer,
    ):
        while batch := list(islice(iterator, ROWS_PER_BATCH)):
            lines = [_content(record) for record in batch]
            for line in lines:
                digest.update(line + b"\0")
            lengths = [text_length(record["conversations"]) for record in batch]
            writer.write_batch(pa.record_batch([pa.array(lines, pa.binary()), pa.array(lengths)], schema=SCHEMA))
        # the digest is known only now
        writer.write_batch(pa.RecordBatch.from_pylist([], SCHEMA), {DIGEST: digest.hexdigest().encode()})
    return RecordTable(path)


def records_digest(records: Sequence[dict[str, Any]]) -> str:
    """Digest of the content of records: that of a RecordTable with the same records."""
    if isinstance(records, RecordTable):
        return records.digest
    digest = hashlib.sha256()
    for record in records:
        digest.update(_content(record) + b"\0")
    return digest.hexdigest()


def text_lengths(records: Sequence[dict[str, Any]]) -> NDArray[np.int64]:
    """(n,) length of the text of each record."""
    if isinstance(records, RecordTable):
        return records.text_lengths
    return np.array([text_length(record["conversations"]) for record in records], np.int64)


def _content(record: dict[str, Any]) -> bytes:
    return json.dumps({key: record[key] for key in KEYS if key in record}, sort_keys=True).encode()
