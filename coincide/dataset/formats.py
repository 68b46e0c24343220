"""Datasets of every format that is read: their records one at a time, as LLaVA's, and subsets of them.

| format | what `annotations` names | images |
| --- | --- | --- |
| LLaVA, ShareGPT | a .json file (a list) or a .jsonl file (a record a line) | files of a folder |
| Parquet | a .parquet file, or a folder of them: messages, conversations or texts, and images | bytes or files |
| WebDataset | a .tar file, or a folder of them: <key>.json and <key>.jpg, .png, … | members |

An image inside a file has a name of its own: `part.parquet#<row>.<number>` or `shard.tar#<offset>+<size>`
(`coincide.dataset.images` opens them). Positions count rows from 0, files in the order of their names.
"""

import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

import ijson
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from coincide.base.errors import UserError
from coincide.base.files import replacing
from coincide.dataset.conversation import IMAGE_MARK

NAMES = {"user": "human", "assistant": "gpt", "human": "human", "gpt": "gpt"}  # of who speaks
PICTURES = {"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm"}
ROWS_AT_ONCE = 1024


class DatasetError(UserError):
    """A dataset that cannot be used as it is; the message names the file and the mend."""


@dataclass(frozen=True)
class Broken:
    """A row that is no record: what is wrong with it."""

    detail: str


def open_dataset(annotations):
    """The dataset at a path: one of the classes below.

    Raises:
        DatasetError: no such file, or of no known format.
    """
    path = Path(annotations)
    kind = {".json": Json, ".jsonl": JsonLines, ".parquet": Parquet, ".tar": Tars}
    if path.is_file():
        if path.suffix in kind:
            return kind[path.suffix](path)
        raise DatasetError(f"{path} is none of {', '.join(kind)}: give dataset.annotations a file with such a name")
    if path.is_dir():
        for suffix in (".parquet", ".tar"):
            if any(path.glob(f"*{suffix}")):
                return kind[suffix](path)
        raise DatasetError(f"the folder {path} holds neither .parquet nor .tar files: set dataset.annotations")
    raise DatasetError(f"{path} does not exist: set dataset.annotations to your dataset")


def to_llava(record):
    """A record of any of the formats as LLaVA's: id, image, conversations of {"from", "value"}, source.

    Any JSON value is taken; what it lacks or has wrong is for `coincide.dataset.manifest.check_record` to find.
    """
    if not isinstance(record, dict):
        return record
    turns = next((record[k] for k in ("conversations", "messages", "texts") if isinstance(record.get(k), list)), None)
    if turns is None:
        return record
    own = {k: v for k, v in record.items() if k not in ("conversations", "messages", "texts", "images")}
    images = record.get("images")
    if images is not None and "image" not in own:
        images = images if isinstance(images, list) else [images]
        own["image"] = images[0] if len(images) == 1 else images or None
    return {**own, "conversations": _marked([t for turn in turns for t in _turns(turn)], own.get("image"))}


def _turns(turn):
    """A turn as LLaVA's; two of them for a pair of question and answer."""
    if not isinstance(turn, dict):
        return [turn]
    if "user" in turn and "assistant" in turn:
        return [{"from": "human", "value": turn["user"]}, {"from": "gpt", "value": turn["assistant"]}]
    who = turn.get("from", turn.get("role"))
    who = NAMES.get(who, who) if isinstance(who, str) else who
    return [{"from": who, "value": _text(turn.get("value", turn.get("content")))}]


def _text(content):
    """The text of a turn's content, parts joined, with a mark for each image."""
    if not isinstance(content, list):
        return content
    parts = []
    for part in content:
        if isinstance(part, dict) and part.get("type") == "image":
            parts.append(f"{IMAGE_MARK}\n")
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            parts.append(part["text"])
        else:
            return content
    return "".join(parts)


def _marked(turns, image):
    """The turns with a mark for each image before the first, where there is none in any."""
    images = [] if image is None else image if isinstance(image, list) else [image]
    values = [turn.get("value") if isinstance(turn, dict) else None for turn in turns]
    if not images or not turns or not all(isinstance(v, str) for v in values) or any(IMAGE_MARK in v for v in values):
        return turns
    return [{**turns[0], "value": f"{IMAGE_MARK}\n" * len(images) + values[0]}, *turns[1:]]


class Json:
    """A JSON file that is a list of records; read a record at a time, whatever its size."""

    own_format = False  # a coreset.json is of this format already

    def __init__(self, path):
        self.path = Path(path)

    def raw(self):
        """Records as they stand in the file.

        Raises:
            DatasetError: not JSON, not a list, or an empty one.
        """
        mend = "write it again or repair that place"
        count = 0
        try:
            with open(self.path, "rb") as file:
                start = file.read(64).lstrip()[:1]
                file.seek(0)
                if start != b"[":
                    raise DatasetError(f"{self.path} must hold a JSON list of samples: {mend}")
                for record in ijson.items(file, "item", use_float=True):
                    count += 1
                    yield record
        except FileNotFoundError:
            raise DatasetError(f"{self.path} does not exist: set dataset.annotations to your dataset") from None
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise DatasetError(f"{self.path} is not valid JSON after {count} samples ({error}): {mend}") from None
        if not count:
            raise DatasetError(f"{self.path} holds an empty list: it must hold at least one sample")

    def __iter__(self):
        """Records as LLaVA's."""
        return map(to_llava, self.raw())

    def pick(self, positions):
        """Yield the raw records at these positions, in the order of the dataset."""
        wanted = np.zeros(max(positions, default=-1) + 1, bool)
        wanted[positions] = True
        for position, record in enumerate(self.raw()):
            if position >= len(wanted):
                return
            if wanted[position]:
                yield record


class JsonLines(Json):
    """A file with a JSON record on each line; a line that is none is a row that is set aside."""

    own_format = True

    def raw(self):
        """Records as they stand in the file, Broken where a line is not JSON."""
        with open(self.path, "rb") as file:
            for line in file:
                if line.strip():
                    yield _parsed(line)

    def write(self, positions, folder):
        """Write the records at these positions, line by line as they are."""
        wanted = set(map(int, positions))
        with open(self.path, "rb") as file, open(Path(folder) / self.path.name, "wb") as target:
            lines = (line for line in file if line.strip())
            target.writelines(line for position, line in enumerate(lines) if position in wanted)


def _parsed(line):
    try:
        return json.loads(line)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        return Broken(f"not valid JSON ({error})")


class _Files:
    """Rows of several files, one after the other."""

    own_format = True

    def __init__(self, path, suffix):
        path = Path(path)
        self.files = sorted(path.glob(f"*{suffix}")) if path.is_dir() else [path]

    def __iter__(self):
        return map(to_llava, self.raw())

    pick = Json.pick


class Parquet(_Files):
    """Parquet files as the hub's datasets are: messages or conversations, and images as bytes or paths."""

    def __init__(self, path):
        super().__init__(path, ".parquet")

    def raw(self):
        """Records as they stand in the files, an image's bytes replaced by its name.

        Raises:
            DatasetError: a file that cannot be read.
        """
        for path in self.files:
            row = 0
            try:
                file = pq.ParquetFile(path)
                columns, column = _columns(file.schema_arrow)
                for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns):
                    for record in batch.to_pylist():
                        yield _with_names(record, column, f"{path.name}#{row}")
                        row += 1
            except (OSError, pa.ArrowException) as error:
                raise DatasetError(f"{path} cannot be read as Parquet after row {row}: {error}") from None

    def write(self, positions, folder):
        """Write the rows at these positions, in files of the same names."""
        positions, first = np.sort(np.asarray(positions, np.int64)), 0
        for path in self.files:
            source, writer = pq.ParquetFile(path), None
            for batch in source.iter_batches(ROWS_AT_ONCE):
                inside = positions[np.searchsorted(positions, first) : np.searchsorted(positions, first + len(batch))]
                if len(inside):
                    writer = writer or pq.ParquetWriter(Path(folder) / path.name, source.schema_arrow)
                    writer.write_batch(batch.take(pa.array(inside - first)))
                first += len(batch)
            if writer:
                writer.close()


IMAGE_COLUMNS = ("images", "image")


def _columns(schema):
    """Columns to read, without the bytes of images; and the name of the column that has them, or None."""
    names, found = [], None
    for field in schema:
        listed = pa.types.is_list(field.type) or pa.types.is_large_list(field.type)
        inner = field.type.value_type if listed else field.type
        if field.name in IMAGE_COLUMNS and (pa.types.is_struct(inner) or pa.types.is_binary(inner)):
            found = field.name
            path = any(f.name == "path" for f in inner) if pa.types.is_struct(inner) else False
            names.append(f"{field.name}{'.list.element' if listed else ''}{'.path' if path else ''}")
        else:
            names.append(field.name)
    return names, found


def _with_names(record, column, place):
    """The record with the names of its images in place of what is read of them."""
    if column is None:
        return record
    images = record.pop(column)
    images = images if isinstance(images, list) else [] if images is None else [images]
    return {**record, "images": [f"{place}.{i}" for i in range(len(images))]}


class Tars(_Files):
    """WebDataset shards: members of one name before the first point belong together."""

    def __init__(self, path):
        super().__init__(path, ".tar")

    def raw(self):
        """Records of the .json members, with the names of the images beside them.

        Raises:
            DatasetError: a file that cannot be read.
        """
        for path in self.files:
            for members in _samples(path):
                yield _of_members(path, members)

    def write(self, positions, folder):
        """Write the samples at these positions, in files of the same names."""
        wanted, position = set(map(int, positions)), 0
        for path in self.files:
            chosen = []
            for members in _samples(path):
                chosen += members if position in wanted else []
                position += 1
            if chosen:
                with tarfile.open(path, "r:") as source, tarfile.open(Path(folder) / path.name, "w") as target:
                    for member in chosen:
                        target.addfile(member, source.extractfile(member))


def _samples(path):
    """Yield the members of each sample of a tar file: those of one key, which lie side by side."""
    try:
        with tarfile.open(path, "r:") as file:
            key, members = None, []
            for member in file:
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                own = f"{folder}/{name.partition('.')[0]}"
                if own != key and members:
                    yield members
                    members = []
                key = own
                members.append(member)
            if members:
                yield members
    except (OSError, tarfile.TarError) as error:
        raise DatasetError(f"{path} cannot be read as a tar file: {error}") from None


def _of_members(path, members):
    suffixes = {m: m.name.rpartition("/")[2].partition(".")[2].lower() for m in members}
    described = next((m for m in members if suffixes[m].rpartition(".")[2] == "json"), None)
    if described is None:
        return Broken(f"{members[0].name} in {path.name} has no .json beside it")
    with open(path, "rb") as file:
        file.seek(described.offset_data)
        record = _parsed(file.read(described.size))
    if not isinstance(record, dict):
        return record
    images = [m for m in members if suffixes[m].rpartition(".")[2] in PICTURES]
    names = [f"{path.name}#{m.offset_data}+{m.size}" for m in sorted(images, key=lambda m: m.name)]
    key = members[0].name.partition(".")[0]
    record = {k: v for k, v in record.items() if k not in IMAGE_COLUMNS}
    return {"id": key, **record, **({"images": names} if names else {})}


def write_subset(dataset, positions, folder):
    """Write the samples at these positions in the dataset's own format, as a folder, whole or not at all."""
    with replacing(folder) as part:
        part.mkdir()
        dataset.write(positions, part)


def coreset_records(dataset, positions):
    """Records at these positions, for a trainer: a JSON dataset's own as they are, others as LLaVA's."""
    picked = dataset.pick(positions)
    return map(to_llava, picked) if dataset.own_format else picked


def read_records(path):
    """All records of a dataset as LLaVA's: list."""
    return list(open_dataset(path))
