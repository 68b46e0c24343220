"""Records in JSON files: a list of records, JSON lines, or an object with one list of records."""

import codecs
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from coincide.dataset.conversation import PROMPT_KEYS, TURN_KEYS
from coincide.dataset.dataset_format import DatasetError, FileFormat
from coincide.dataset.json_stream import JsonStream, JsonStreamError, parse_json
from coincide.dataset.samples import UnreadableRow

RECORD_KEYS = {*TURN_KEYS, *PROMPT_KEYS}  # an object with one of these keys is a record
BYTE_ORDER_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class JsonDataset(FileFormat):
    """A .json file: a list of records, records one after the other, or an object around one list of records."""

    is_json = True

    def raw(self) -> Iterator[Any]:
        """Yield the records.

        Raises:
            DatasetError: the file is missing, empty, not valid JSON, or its records cannot be located.
        """
        count = 0
        try:
            for record in self._records():
                count += 1
                yield record
        except FileNotFoundError:
            raise DatasetError(f"{self.path} does not exist: set dataset.annotations to your dataset") from None
        except JsonStreamError as error:
            raise DatasetError(
                f"{self.path} is not valid JSON after {count} samples ({error}); fix or regenerate the file"
            ) from None
        if not count:
            raise DatasetError(f"{self.path} contains no samples; it must contain at least one")

    @contextmanager
    def writer(self, path: Path) -> Iterator[Callable[[Any], None]]:
        """Write a JSON list of the records."""
        with open(path, "w", encoding="utf-8") as file:
            separators = chain(["[\n"], repeat(",\n"))
            yield lambda record: print(
                next(separators), json.dumps(record, ensure_ascii=False), sep="", end="", file=file
            )
            file.write("\n]\n")

    def _records(self):
        with open(self.path, "rb") as file:
            stream = JsonStream(file)
            start = stream.peek()
            if start == "[":
                yield from stream.list_items()
            elif start == "{":
                list_key = self._list_key()
                if list_key is None:
                    while stream.peek():
                        yield stream.value()
                    return
                for key in stream.object_keys():
                    if key == list_key:
                        yield from stream.list_items()
                    else:
                        stream.value()
            elif start:
                raise DatasetError(f"{self.path} must contain a JSON list of samples; fix or regenerate the file")
            if stream.peek():
                raise DatasetError(
                    f"{self.path} has more text after the end of the list of samples; fix or regenerate the file"
                )

    def _list_key(self):
        """The key of the list of records in a file that starts with an object; None if the object is a record.

        Raises:
            DatasetError: the object is neither a record nor around one list of records.
        """
        sizes: dict[str, int] = {}  # number of records in each list
        others: dict[str, bool] = {}  # whether the value of another key is a record
        with open(self.path, "rb") as file:
            stream = JsonStream(file)
            for key in stream.object_keys():
                if stream.peek() == "[":
                    count, has_records = _inspect_list(stream, key)
                else:
                    value = stream.value()
                    others[key] = isinstance(value, dict) and not RECORD_KEYS.isdisjoint(value)
                    has_records = False
                if has_records:
                    sizes[key] = count
                elif key in RECORD_KEYS:
                    return None
                else:
                    others.setdefault(key, False)
            if stream.peek():
                return None  # records one after the other, of which the first has no conversation
        if len(sizes) == 1:
            return next(iter(sizes))
        if sizes:
            lists = ", ".join(f"{key!r} ({count:,} entries)" for key, count in sizes.items())
            raise DatasetError(
                f"{self.path} is an object with several lists: {lists}; write the list of the samples to a file"
            )
        if any(others.values()):
            raise DatasetError(
                f"{self.path} is an object from ids to records; write a list of the records, each with its `id`"
            )
        keys = ", ".join(map(repr, list(others)[:10])) or "none"
        raise DatasetError(
            f"{self.path} is one JSON object that is no sample (keys: {keys}); it must contain a list of samples"
        )


def _inspect_list(stream, key):
    """(number of items, whether they are records) of the list that is next; `key` is its key."""
    count, has_records = 0, False
    for count, item in enumerate(stream.list_items(), 1):
        if count == 1:  # the turns of a record are objects, too
            is_record = isinstance(item, dict) and not RECORD_KEYS.isdisjoint(item)
            has_records = is_record or (isinstance(item, dict) and key not in RECORD_KEYS)
    return count, has_records


class JsonLinesDataset(FileFormat):
    """A .jsonl file with one JSON record per line. Blank lines are skipped."""

    def raw(self) -> Iterator[Any]:
        """Yield the record of each line, an UnreadableRow for a line that is not JSON.

        Raises:
            DatasetError: the file has no lines, or cannot be read.
        """
        line = None
        for line in self.rows():
            try:
                yield parse_json(line)
            except JsonStreamError as error:
                yield UnreadableRow(f"not valid JSON ({error})")
        if line is None:
            raise DatasetError(f"{self.path} contains no samples; it must contain at least one")

    @contextmanager
    def writer(self, path: Path) -> Iterator[Callable[[bytes], None]]:
        """Write the lines unchanged; in UTF-8 also where the dataset is in UTF-16."""
        with open(path, "wb") as file:
            yield lambda line: file.writelines([line, b"\n" * (not line.endswith(b"\n"))])

    def rows(self) -> Iterator[bytes]:
        """Yield the lines that are not blank, in UTF-8 and without a byte-order mark."""
        try:
            with open(self.path, "rb") as file:
                start = file.read(4)
                file.seek(0)
                if start.startswith(BYTE_ORDER_MARKS):
                    encoding = json.detect_encoding(start)
                    with open(self.path, encoding=encoding, newline="\n") as text:
                        lines = (line.encode() for line in text)
                        yield from filter(bytes.strip, lines)
                    return
                if start.startswith(codecs.BOM_UTF8):
                    file.seek(len(codecs.BOM_UTF8))
                yield from filter(bytes.strip, file)
        except FileNotFoundError:
            raise DatasetError(f"{self.path} does not exist: set dataset.annotations to your dataset") from None
        except UnicodeDecodeError as error:
            raise DatasetError(f"{self.path} cannot be decoded: {error}; save the file as UTF-8") from None


def json_dataset(path: Path, name: str | None = None) -> FileFormat:
    """The dataset in a .json or .jsonl file.

    A .jsonl file that contains a JSON list is read as one.
    """
    if path.suffix == ".jsonl":
        with open(path, "rb") as file:
            is_list = JsonStream(file).peek() == "["
        if not is_list:
            return JsonLinesDataset(path, name)
    return JsonDataset(path, name)
