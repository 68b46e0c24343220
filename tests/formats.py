"""The same samples in every format that is read."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

FORMATS = ("json", "jsonl", "sharegpt", "parquet", "parquet_paths", "texts", "tar")


def write(kind, records, images, folder):
    """Write LLaVA records (one image at most each) in a format; returns what to give as annotations."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "json":
        (folder / "data.json").write_text(json.dumps(records))
        return folder / "data.json"
    if kind == "jsonl":
        (folder / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        return folder / "data.jsonl"
    if kind == "sharegpt":
        (folder / "data.json").write_text(json.dumps([_sharegpt(r) for r in records]))
        return folder / "data.json"
    if kind == "tar":
        return _tars(records, images, folder)
    return _parquets(kind, records, images, folder)


def _sharegpt(record):
    roles = {"human": "user", "gpt": "assistant"}
    turns = [{"role": roles[t["from"]], "content": t["value"]} for t in record["conversations"]]
    return {"id": record["id"], "messages": turns, "images": [record["image"]] if "image" in record else []}


def _bytes(images, name):
    path = Path(images) / name
    return path.read_bytes() if path.exists() else b"gone"


def _parts(value):
    """A turn's text as parts, as chat templates take it."""
    mark, _, rest = value.rpartition("<image>\n")
    return [{"type": "image", "text": None}] * bool(mark or value != rest) + [{"type": "text", "text": rest}]


def _parquets(kind, records, images, folder):
    """Two files of three row groups each."""
    image = pa.list_(
        pa.string() if kind == "parquet_paths" else pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    rows = []
    for record in records:
        names = [record["image"]] if "image" in record else []
        pictures = names if kind == "parquet_paths" else [{"bytes": _bytes(images, n), "path": None} for n in names]
        row = {"id": record["id"], "images": pictures}
        if kind == "texts":
            pairs = zip(record["conversations"][::2], record["conversations"][1::2])
            row["texts"] = [
                {"user": q["value"].replace("<image>\n", ""), "assistant": a["value"], "source": "x"} for q, a in pairs
            ]
        else:
            roles = {"human": "user", "gpt": "assistant"}
            row["messages"] = [
                {"role": roles[t["from"]], "content": _parts(t["value"])} for t in record["conversations"]
            ]
        rows.append(row)
    table = pa.Table.from_pylist(rows)
    table = table.set_column(
        table.schema.get_field_index("images"), "images", pa.array([r["images"] for r in rows], image)
    )
    half = len(rows) // 2
    for i, part in enumerate((table.slice(0, half), table.slice(half))):
        pq.write_table(part, folder / f"part-{i}.parquet", row_group_size=max(1, len(part) // 3))
    return folder


def _tars(records, images, folder):
    half = len(records) // 2
    for i, part in enumerate((records[:half], records[half:])):
        with tarfile.open(folder / f"shard-{i}.tar", "w") as file:
            for record in part:
                own = {k: v for k, v in record.items() if k not in ("image", "id")}
                members = {"json": json.dumps(own).encode()}
                if "image" in record:
                    members[Path(record["image"]).suffix[1:]] = _bytes(images, record["image"])
                for suffix, content in members.items():
                    member = tarfile.TarInfo(f"{record['id']}.{suffix}")
                    member.size = len(content)
                    file.addfile(member, io.BytesIO(content))
    return folder
