"""Writes the same samples in every supported format."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

FORMATS = ("json", "jsonl", "sharegpt", "parquet", "parquet_paths", "texts", "tar")
ROLES = {"human": "user", "gpt": "assistant"}


def write(kind, records, images, folder):
    """Write LLaVA records (with at most one image each) in a format; returns the path for `annotations`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "json":
        (folder / "data.json").write_text(json.dumps(records))
        return folder / "data.json"
    if kind == "jsonl":
        (folder / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return folder / "data.jsonl"
    if kind == "sharegpt":
        (folder / "data.json").write_text(json.dumps([_to_sharegpt(record) for record in records]))
        return folder / "data.json"
    if kind == "tar":
        return _write_tars(records, images, folder)
    return _write_parquets(kind, records, images, folder)


def _to_sharegpt(record):
    turns = [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in record["conversations"]]
    return {"id": record["id"], "messages": turns, "images": [record["image"]] if "image" in record else []}


def _image_bytes(images, name):
    """Bytes of an image; bytes that are not an image if the file is missing."""
    path = Path(images) / name
    return path.read_bytes() if path.exists() else b"gone"


def _content_parts(value):
    """A turn's text as the list of parts that chat templates take."""
    mark, _, text = value.rpartition("<image>\n")
    has_image = bool(mark or value != text)
    return [{"type": "image", "text": None}] * has_image + [{"type": "text", "text": text}]


def _write_parquets(kind, records, images, folder):
    """Write two files with three row groups each: messages or texts, and image bytes or paths."""
    rows, images_of_rows = [], []
    for record in records:
        names = [record["image"]] if "image" in record else []
        if kind == "parquet_paths":
            images_of_rows.append(names)
        else:
            images_of_rows.append([{"bytes": _image_bytes(images, name), "path": None} for name in names])
        row = {"id": record["id"], "images": images_of_rows[-1]}
        turns = record["conversations"]
        if kind == "texts":
            row["texts"] = [
                {"user": question["value"].replace("<image>\n", ""), "assistant": answer["value"], "source": "x"}
                for question, answer in zip(turns[::2], turns[1::2])
            ]
        else:
            row["messages"] = [{"role": ROLES[t["from"]], "content": _content_parts(t["value"])} for t in turns]
        rows.append(row)
    image_struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    image_column = pa.array(images_of_rows, pa.list_(pa.string() if kind == "parquet_paths" else image_struct))
    table = pa.Table.from_pylist(rows)
    table = table.set_column(table.schema.get_field_index("images"), "images", image_column)
    half = len(rows) // 2
    for i, half_table in enumerate((table.slice(0, half), table.slice(half))):
        pq.write_table(half_table, folder / f"part-{i}.parquet", row_group_size=max(1, len(half_table) // 3))
    return folder


def _write_tars(records, images, folder):
    """Write two WebDataset shards."""
    half = len(records) // 2
    for i, half_records in enumerate((records[:half], records[half:])):
        with tarfile.open(folder / f"shard-{i}.tar", "w") as file:
            for record in half_records:
                annotation = {key: value for key, value in record.items() if key not in ("image", "id")}
                members = {"json": json.dumps(annotation).encode()}
                if "image" in record:
                    members[Path(record["image"]).suffix[1:]] = _image_bytes(images, record["image"])
                for suffix, content in members.items():
                    member = tarfile.TarInfo(f"{record['id']}.{suffix}")
                    member.size = len(content)
                    file.addfile(member, io.BytesIO(content))
    return folder
