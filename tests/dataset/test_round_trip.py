"""Any record through any format and back is equal, or it is rejected with its reason at the manifest."""

import io
import json
import math
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from coincide.base.sections import Dataset
from coincide.dataset.conversation import image_list
from coincide.dataset.formats import open_dataset, read_records, to_llava, write_subset
from coincide.dataset.manifest import build_manifest
from coincide.dataset.samples import Reason, UnreadableRow
from coincide.dataset.shards import read_shard, write_shards
from coincide.dataset.uniform_records import write_uniform_records

FORMATS = ("json", "jsonl", "parquet", "tar")

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**70) | st.floats() | st.text(max_size=6) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=4), inner, max_size=3),
    max_leaves=5,
)
texts = st.sampled_from(["Hi", "<image>\nWhat?", "<video>\nWhat?", "é\u2028\0", "\ud800", "", "<image>"]) | st.text(
    max_size=9
)
names = st.sampled_from(["a.png", "sub/b.png", "gone.png", "", "../a.png", "\ud800.png", "https://x/a.png"])


def turns_of(speaker, text, human, gpt, system):
    def turns(pairs, start):
        spoken = [{speaker: system, text: start}] if start is not None else []
        return spoken + [{speaker: who, text: said} for pair in pairs for who, said in zip((human, gpt), pair)]

    return st.builds(turns, st.lists(st.tuples(texts, texts), max_size=2), st.none() | texts)


llava_turns = turns_of("from", "value", "human", "gpt", "system")
messages = turns_of("role", "content", "user", "assistant", "system")
records = st.fixed_dictionaries(
    {},
    optional={
        "id": st.sampled_from(["a", 1, 2.0, "\ud800"]) | values,
        "image": names | st.lists(names, max_size=2) | values,
        "images": st.lists(names, max_size=2),
        "conversations": llava_turns | llava_turns.map(json.dumps) | values,
        "messages": messages,
        "system": texts | values,
        "instruction": texts,
        "output": texts,
        "extra": values,
        "video": st.sampled_from([None, "", "a.mp4"]),
    },
) | st.fixed_dictionaries(
    {"id": st.just("a"), "conversations": llava_turns}, optional={"image": names, "extra": values}
)


def without_non_finite(value):
    """The value with null instead of NaN and Infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_non_finite(item) for key, item in value.items()}
    return [without_non_finite(item) for item in value] if isinstance(value, list) else value


def without_nulls(value):
    """The value without null entries of objects: Parquet does not tell them from missing ones."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def write(kind, record, folder):
    """Write one record, without our writers; the path for `annotations`, None if the format cannot hold the record."""
    folder.mkdir()
    path = folder / f"data.{kind}"
    if kind == "json":
        path.write_text(json.dumps([record]))
    elif kind == "jsonl":
        path.write_text(json.dumps(record) + "\n")
    elif kind == "tar":
        content = json.dumps(record).encode()
        with tarfile.open(path, "w") as file:
            member = tarfile.TarInfo("key.json")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    else:
        try:
            table = pa.Table.from_pylist([record])
            if not table.num_rows:  # a record without keys
                return None
            pq.write_table(table, path)
        except (pa.ArrowException, UnicodeEncodeError, OverflowError, ValueError, TypeError):
            return None
    return path


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(records)
def test_a_record_is_equal_in_every_format_or_rejected(tmp_path_factory, record):
    folder = tmp_path_factory.mktemp("round-trip")
    (folder / "images/sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png"):
        Image.new("RGB", (4, 4)).save(folder / "images" / name)
    outcomes = {}
    for kind in FORMATS:
        annotations = write(kind, record, folder / kind)
        if annotations is None:
            continue
        dataset = Dataset(annotations=str(annotations), images=str(folder / "images"))
        manifest, rejected = build_manifest(open_dataset(annotations), dataset.image_folders, dataset)
        assert len(manifest) + len(rejected) == 1
        outcomes[kind] = rejected["reason"].tolist()
        if len(rejected):
            assert rejected["reason"][0] in set(Reason)
            continue
        same = without_nulls if kind == "parquet" else lambda value: value
        expected = to_llava(without_non_finite(record))
        if kind == "tar":
            expected = {"id": "key", **expected}
        (read,) = open_dataset(annotations)
        assert same(read) == same(expected)
        write_shards(open_dataset(annotations), manifest, 1, folder / kind / "shards")
        (sample,) = read_shard(folder / kind / "shards/shard-00000.jsonl")
        assert sample.record == read
        write_uniform_records(
            open_dataset(annotations), [0], list(manifest["sample_id"]), folder / kind / "coreset.json"
        )
        (uniform,) = read_records(folder / kind / "coreset.json")
        assert uniform["id"] == manifest["sample_id"][0]
        assert image_list(uniform.get("image")) == image_list(read.get("image"))
        assert uniform["conversations"] == read["conversations"]
        json.loads((folder / kind / "coreset.json").read_text(), parse_constant=pytest.fail)
        write_subset(open_dataset(annotations), [0], folder / kind / "subset")
        assert list(open_dataset(folder / kind / "subset" / annotations.name)) == [read]
    assert outcomes["json"] == outcomes["jsonl"] == outcomes["tar"]
    assert outcomes.get("parquet", outcomes["json"]) == outcomes["json"]


def test_invalid_text_that_the_conversion_leaves_out_is_rejected_too(tmp_path):
    """coreset.json has the original records of a JSON dataset, with the parts that are not read."""
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho", "note": "\ud800"}]
    decoded = json.dumps([{"from": "human", "value": "\ud800"}, turns[1]])
    for record in (
        {"conversations": turns},
        {"conversations": turns[:1] * 2, "messages": turns},
        {"conversations": decoded},
    ):
        _, rejected = build_manifest([to_llava(record)], tmp_path, Dataset(annotations="-"))
        assert rejected["reason"].tolist() == ["malformed record"]


def test_unreadable_rows_are_rejected_with_their_reason(tmp_path):
    rows = [UnreadableRow("broken"), to_llava({"system": "a", "messages": [{"role": "system", "content": "b"}]})]
    _, rejected = build_manifest(rows, tmp_path, Dataset(annotations="-"))
    assert rejected["reason"].tolist() == ["malformed record", "malformed turns"]
