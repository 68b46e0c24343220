"""Parquet and WebDataset files as other programs write them; several files as one dataset; rows that are counted."""

import datetime
import decimal
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_record
from formats import FORMATS, write
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from coincide.base.sections import Dataset
from coincide.dataset.formats import DatasetError, expand_annotations, open_dataset, write_subset
from coincide.dataset.images import image_names, open_image
from coincide.dataset.manifest import build_manifest

TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A thing."}]
TEXT_TURNS = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]


def png(value, folder=None, name=None):
    """Bytes of a small image; also written to a file if there is a name."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(file, "PNG")
    if name:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(file.getvalue())
    return file.getvalue()


def manifest_of(annotations, images=None):
    """(manifest in the order of the dataset, rejected samples, folders of images)."""
    dataset = Dataset(annotations=str(annotations), images=images and str(images))
    manifest, rejected = build_manifest(open_dataset(dataset.annotations), dataset.image_folders, dataset)
    return manifest.sort_values("position"), rejected, dataset.image_folders


def colours(annotations, folders):
    """The red value of the first image of each record, None for a record without an image."""
    names = [image_names(record) for record in open_dataset(annotations)]
    return [open_image(folders, found[0]).getpixel((0, 0))[0] if found else None for found in names]


def write_parquet(path, images, turns=None, image_type=None, **columns):
    turns = turns or [TURNS if image else TEXT_TURNS for image in images]
    image_type = image_type or pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"image": pa.array(images, image_type), "conversations": turns, **columns})
    pq.write_table(table, path)
    return path


# Parquet


def test_parquet_with_null_bytes_and_absolute_paths_is_read(tmp_path):
    """As datasets.to_parquet writes images that were loaded from files."""
    images = tmp_path / "images"
    for value in (10, 20):
        png(value, images, f"sub/{value}.png")
    png(30, tmp_path, "outside.png")
    paths = [str(images / "sub/10.png"), str(images / "sub/20.png"), str(tmp_path / "outside.png")]
    path = write_parquet(tmp_path / "data/a.parquet", [{"bytes": None, "path": path} for path in paths])
    manifest, rejected, folders = manifest_of(path, images)
    assert manifest["position"].tolist() == [0, 1]
    assert rejected["reason"].tolist() == ["image path outside the folder"]
    name = manifest["image"].iloc[1]
    assert open_image(folders, name).getpixel((0, 0)) == (20, 0, 0)


def test_a_relative_path_in_parquet_is_in_the_images_folder_or_beside_the_file(tmp_path):
    png(10, tmp_path / "images", "10.png")
    png(20, tmp_path / "data/part", "20.png")
    paths = [{"bytes": None, "path": name} for name in ("10.png", "20.png")]
    write_parquet(tmp_path / "data/part/a.parquet", paths)
    write_parquet(tmp_path / "data/b.parquet", [{"bytes": png(30), "path": "x.png"}])
    annotations = [str(tmp_path / "data/part"), str(tmp_path / "data/b.parquet")]
    dataset = Dataset(annotations=annotations, images=str(tmp_path / "images"))
    assert colours(annotations, dataset.image_folders) == [10, 20, 30]


def test_images_inside_parquet_do_not_depend_on_the_images_folder(tmp_path):
    path = write_parquet(tmp_path / "data/a.parquet", [{"bytes": png(10), "path": "x.png"}])
    (tmp_path / "elsewhere").mkdir()
    _, rejected, folders = manifest_of(path, tmp_path / "elsewhere")
    assert len(rejected) == 0
    assert colours(path, folders) == [10]


def test_a_null_image_is_no_image(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [None, {"bytes": png(10), "path": None}])
    manifest, rejected, folders = manifest_of(path)
    assert (len(manifest), len(rejected)) == (2, 0)
    assert colours(path, folders) == [None, 10]


NO_IMAGE = {"bytes": None, "path": None}


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("as_list", [True, False])
@pytest.mark.parametrize("rows", ["all", "one", "mixed", "none"])
def test_an_image_without_bytes_and_path_is_no_image(tmp_path, rows, as_list, statistics):
    """As `datasets` writes text-only samples; whether an image without a path has bytes is known from its row group."""
    with_bytes, named = {"bytes": png(10), "path": None}, {"bytes": png(20), "path": "x.png"}
    images = {
        "all": [with_bytes, named, with_bytes],
        "one": [with_bytes, None, named],
        "mixed": [with_bytes, NO_IMAGE, named, None, NO_IMAGE],
        "none": [NO_IMAGE, None, NO_IMAGE],
    }[rows]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    turns = [TEXT_TURNS for _ in images]  # without a mark, which is added where there is an image
    column = [[image] if image else [] for image in images] if as_list else images
    column = pa.array(column, pa.list_(struct) if as_list else struct)
    for row_group_size in (1, 2, 10):
        path = tmp_path / f"{row_group_size}.parquet"
        table = pa.table({"images": column, "conversations": turns})
        pq.write_table(table, path, row_group_size=row_group_size, write_statistics=statistics)
        manifest, rejected, folders = manifest_of(path)
        assert (len(manifest), len(rejected)) == (len(images), 0)
        colour = {id(with_bytes): 10, id(named): 20}
        assert colours(path, folders) == [colour.get(id(image)) for image in images]


@pytest.mark.parametrize("as_list", [True, False])
@pytest.mark.parametrize("as_struct", [True, False])
def test_images_in_a_column_without_paths(tmp_path, as_list, as_struct):
    images = [{"bytes": png(10)} if as_struct else png(10), {"bytes": None} if as_struct else None]
    image_type = pa.struct([("bytes", pa.binary())]) if as_struct else pa.binary()
    if as_list:
        images, image_type = [[image] for image in images], pa.list_(image_type)
    path = write_parquet(tmp_path / "a.parquet", images, turns=[TEXT_TURNS] * 2, image_type=image_type)
    assert colours(path, [tmp_path]) == [10, None]


def test_a_marked_image_without_bytes_and_path_is_rejected(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [NO_IMAGE, {"bytes": png(10), "path": None}], turns=[TURNS, TURNS])
    manifest, rejected, _ = manifest_of(path)
    assert manifest["position"].tolist() == [1]
    assert rejected["reason"].tolist() == ["image token count mismatch"]


def test_the_bytes_of_images_are_not_read_to_list_records(tmp_path, monkeypatch):
    """A few rows without an image do not make the whole file be read."""
    images = [{"bytes": png(10), "path": None}, None, {"bytes": png(20), "path": "x.png"}]
    path = write_parquet(tmp_path / "a.parquet", images)
    read = []
    iter_batches = pq.ParquetFile.iter_batches

    def remember(self, *args, **options):
        read.extend(options["columns"])
        return iter_batches(self, *args, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", remember)
    records = list(open_dataset(path).raw())
    assert [len(record["images"]) for record in records] == [1, 0, 1]
    assert set(read) == {"image.path", "conversations"}


@pytest.mark.parametrize("compliant", [True, False])
@pytest.mark.parametrize("large", [True, False])
def test_lists_whose_element_is_named_item_are_read(tmp_path, compliant, large):
    """As polars, ClickHouse and Spark write them."""
    struct = pa.struct([("path", pa.large_string()), ("bytes", pa.large_binary())])
    images = pa.array([[{"bytes": png(10), "path": None}], []], pa.large_list(struct) if large else pa.list_(struct))
    table = pa.table({"images": images, "conversations": [TURNS, TEXT_TURNS]})
    pq.write_table(table, tmp_path / "a.parquet", use_compliant_nested_type=compliant)
    assert ("item" in str(pq.ParquetFile(tmp_path / "a.parquet").schema)) == (not compliant)
    _, rejected, folders = manifest_of(tmp_path / "a.parquet")
    assert len(rejected) == 0
    assert colours(tmp_path / "a.parquet", folders) == [10, None]


def test_values_that_json_does_not_have_are_converted(tmp_path):
    key = uuid.UUID(int=5)
    columns = {
        "when": [datetime.datetime(2024, 1, 2, 3, 4, 5)],
        "day": [datetime.date(2024, 1, 2)],
        "took": [datetime.timedelta(seconds=90)],
        "price": [decimal.Decimal("1.50")],
        "text": pa.array([b"\xc3\xa9t\xc3\xa9"], pa.binary()),
        "raw": pa.array([b"\xff\x00"], pa.binary()),
        "score": [float("nan")],
        "map": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
        "kind": pa.array(["x"]).dictionary_encode(),
        "key": pa.array([key.bytes], pa.uuid()),
    }
    path = write_parquet(tmp_path / "a.parquet", [None], **columns)
    (record,) = open_dataset(path)
    values = {name: record[name] for name in columns}
    assert values == {
        "when": "2024-01-02T03:04:05",
        "day": "2024-01-02",
        "took": 90.0,
        "price": "1.50",
        "text": "été",
        "raw": "/wA=",
        "score": None,
        "map": {"a": 1},
        "kind": "x",
        "key": str(key),
    }
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_text_in_binary_columns_is_read(tmp_path):
    turns = pa.array([TEXT_TURNS], pa.list_(pa.struct([("from", pa.binary()), ("value", pa.binary())])))
    path = write_parquet(tmp_path / "a.parquet", [None], turns, id=pa.array([b"a1"], pa.binary()))
    manifest, _, _ = manifest_of(path)
    assert manifest["sample_id"].tolist() == ["a1"]


def test_rows_of_parquet_that_cannot_be_converted_are_rejected(tmp_path):
    invalid = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(np.int32([0, 1, 2, 3]).tobytes()), pa.py_buffer(b"a\xffb")]
    )
    path = write_parquet(tmp_path / "a.parquet", [None] * 3, note=invalid)
    manifest, rejected, _ = manifest_of(path)
    assert manifest["position"].tolist() == [0, 2]
    assert rejected["reason"].tolist() == ["malformed record"]


def test_conversations_in_parquet_as_json_text_or_as_a_struct_of_lists(tmp_path):
    table = {"from": [[turn["from"] for turn in TEXT_TURNS]], "value": [[turn["value"] for turn in TEXT_TURNS]]}
    struct = pa.StructArray.from_arrays([pa.array(table["from"]), pa.array(table["value"])], ["from", "value"])
    for i, turns in enumerate((pa.array([json.dumps(TEXT_TURNS)]), struct)):
        path = write_parquet(tmp_path / f"{i}.parquet", [None], turns)
        (record,) = open_dataset(path)
        assert record["conversations"] == TEXT_TURNS


def test_two_columns_of_images_are_an_error(tmp_path):
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([[{"bytes": png(1), "path": None}]], pa.list_(struct))
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"images": images, "image": images, "conversations": [TURNS]}), path)
    with pytest.raises(DatasetError, match=r"a\.parquet: the columns images and image both contain images"):
        list(open_dataset(path))


# WebDataset


def write_tar(path, members, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as file:
        for name, content in members:
            member = tarfile.TarInfo(name)
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


RECORD, TEXT_RECORD = {"conversations": TURNS}, {"conversations": TEXT_TURNS}


@pytest.mark.parametrize("prefix", ["", "./", "train.v1/", "/", "a/b.c/"])
def test_folders_in_a_tar_file_may_have_dots(tmp_path, prefix):
    contents = {"json": lambda i: RECORD, "png": png}
    members = [(f"{prefix}{i:04d}.{kind}", content(i)) for i in range(3) for kind, content in contents.items()]
    path = write_tar(tmp_path / "a.tar", members)
    manifest, rejected, folders = manifest_of(path)
    folder = prefix.lstrip("./")
    assert manifest["sample_id"].tolist() == [f"{folder}{i:04d}" for i in range(3)]
    assert len(rejected) == 0
    assert colours(path, folders) == [0, 1, 2]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            [("clip0.1_1.json", RECORD), ("clip0.1_1.png", png(1)), ("clip0.1_2.json", RECORD)],
            r"a\.tar: the sample 'clip0' has several \.json members \(clip0\.1_1\.json, clip0\.1_2\.json\)",
        ),
        (
            [("a.json", RECORD), ("b.json", RECORD), ("a.png", png(1)), ("b.png", png(1))],
            r"a\.tar: the members of 'a' are in several places",
        ),
        ([("sub/.json", RECORD)], r"a\.tar: the member 'sub/\.json' has no key"),
    ],
)
def test_a_tar_file_that_cannot_be_divided_into_samples_is_an_error(tmp_path, members, message):
    path = write_tar(tmp_path / "a.tar", members)
    with pytest.raises(DatasetError, match=message):
        list(open_dataset(path))


def test_every_cut_of_a_tar_file_is_an_error(tmp_path):
    path = write_tar(tmp_path / "a.tar", [(f"{i}.json", TEXT_RECORD) for i in range(4)])
    content = path.read_bytes()
    end = content.rstrip(b"\0")
    for size in range(512, len(end), 512):
        path.write_bytes(content[:size])
        with pytest.raises(DatasetError, match=r"a\.tar"):
            list(open_dataset(path))


def test_archives_one_after_the_other_are_an_error(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("0.json", TEXT_RECORD)])
    path.write_bytes(path.read_bytes() + write_tar(tmp_path / "b.tar", [("1.json", TEXT_RECORD)]).read_bytes())
    with pytest.raises(DatasetError, match="more data after the end"):
        list(open_dataset(path))


def test_a_damaged_header_in_a_tar_file_is_an_error(tmp_path):
    path = write_tar(tmp_path / "a.tar", [(f"{i}.json", TEXT_RECORD) for i in range(4)])
    content = bytearray(path.read_bytes())
    content[1024:1100] = b"x" * 76
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="damaged member at byte 1024"):
        list(open_dataset(path))


def test_images_of_a_sample_are_in_the_order_of_their_numbers(tmp_path):
    turns = [{"from": "human", "value": "<image>" * 3}, TURNS[1]]
    members = [("a.json", {"conversations": turns}), *((f"a.{i}.png", png(i)) for i in (10, 2, 1))]
    path = write_tar(tmp_path / "a.tar", members)
    (record,) = open_dataset(path)
    assert [open_image(tmp_path, name).getpixel((0, 0))[0] for name in image_names(record)] == [1, 2, 10]


def test_media_in_a_tar_file_and_links_are_not_lost_in_silence(tmp_path):
    path = tmp_path / "a.tar"
    write_tar(path, [("a.json", TEXT_RECORD), ("a.mp4", b"x"), ("b.png", png(1))])
    with tarfile.open(path, "a") as file:
        link = tarfile.TarInfo("c.png")
        link.type, link.linkname = tarfile.LNKTYPE, "b.png"
        file.addfile(link)
    _, rejected, _ = manifest_of(path)
    assert rejected["reason"].tolist() == ["unsupported medium", "malformed record", "malformed record"]
    assert "video" in rejected["detail"][0]
    assert "a link" in rejected["detail"][2]


def test_names_of_images_in_a_record_without_image_members_are_kept(tmp_path):
    png(7, tmp_path / "images", "7.png")
    path = write_tar(tmp_path / "data/a.tar", [("a.json", RECORD | {"image": "7.png"})])
    _, rejected, folders = manifest_of(path, tmp_path / "images")
    assert len(rejected) == 0
    assert colours(path, folders) == [7]


# several files


def test_several_files_folders_and_globs_are_one_dataset(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"id": "a", **TEXT_RECORD}]))
    (tmp_path / "b.jsonl").write_text(json.dumps({"id": "b", **TEXT_RECORD}))
    write_parquet(tmp_path / "p/x.parquet", [{"bytes": png(1), "path": None}], id=["c"])
    write_parquet(tmp_path / "q/x.parquet", [{"bytes": png(2), "path": None}] * 2, id=["d", "e"])
    write_tar(tmp_path / "t/train-0.tar", [("f.json", RECORD), ("f.png", png(3))])
    write_tar(tmp_path / "t/test-0.tar", [("g.json", RECORD), ("g.png", png(3))])
    annotations = [str(tmp_path / name) for name in ("a.json", "b.jsonl", "p", "q/*.parquet", "t/train-*")]
    dataset = Dataset(annotations=annotations)
    manifest, rejected = build_manifest(open_dataset(annotations), dataset.image_folders, dataset)
    assert manifest.sort_values("position")["sample_id"].tolist() == list("abcdef")
    assert len(rejected) == 0
    assert colours(annotations, dataset.image_folders) == [None, None, 1, 2, 2, 3]
    positions = [1, 3, 4, 5]
    assert [record["id"] for record in open_dataset(annotations).pick(positions)] == list("bdef")
    write_subset(open_dataset(annotations), positions, tmp_path / "subset")
    subset = [str(tmp_path / "subset" / name) for name in ("b.jsonl", "q/x.parquet", "t/train-0.tar")]
    assert [record["id"] for record in open_dataset(subset)] == list("bdef")
    assert len(list((tmp_path / "subset").rglob("*.*"))) == 3


def test_a_folder_with_several_splits_is_refused(tmp_path):
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        write_parquet(tmp_path / f"{name}.parquet", [None])
    with pytest.raises(DatasetError, match=r"several splits: test \(1 file\), train \(2 files\)") as error:
        open_dataset(tmp_path)
    advice = f"{tmp_path}/train*.parquet"
    assert advice in str(error.value)
    assert len(list(open_dataset(advice))) == 2
    assert len(list(open_dataset(tmp_path / "*.parquet"))) == 3


@pytest.mark.parametrize("names", [["train_sft-00000-of-00001", "test_sft-00000-of-00001"], ["train", "validation"]])
def test_other_names_of_splits(tmp_path, names):
    for name in names:
        write_tar(tmp_path / f"{name}.tar", [("a.json", TEXT_RECORD)])
    with pytest.raises(DatasetError, match="several splits"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("names", [["part-0", "part-1"], ["train-0", "train-1"], ["coco", "trains"]])
def test_files_that_are_no_splits(tmp_path, names):
    for name in names:
        write_parquet(tmp_path / f"{name}.parquet", [None])
    assert len(list(open_dataset(tmp_path))) == 2


def test_paths_of_annotations_that_do_not_work_are_errors(tmp_path):
    write_parquet(tmp_path / "a.parquet", [None])
    with pytest.raises(DatasetError, match="matches no files"):
        expand_annotations(str(tmp_path / "*.json"))
    with pytest.raises(DatasetError, match=r"a\.parquet is named twice"):
        open_dataset([tmp_path / "a.parquet", tmp_path / "*.parquet"])
    with pytest.raises(DatasetError, match="too long"):
        open_dataset(tmp_path / ("a" * 300 + ".json"))
    write_tar(tmp_path / "b.tar", [("a.json", TEXT_RECORD)])
    with pytest.raises(DatasetError, match=r"contains \.parquet and \.tar files"):
        open_dataset(tmp_path)


def test_a_path_with_the_characters_of_a_glob_is_taken_as_it_is(tmp_path):
    path = write_parquet(tmp_path / "data [v1] {x} #2 *é.parquet", [{"bytes": png(5), "path": None}])
    assert expand_annotations(str(path)) == [str(path)]
    _, rejected, folders = manifest_of(path)
    assert len(rejected) == 0
    assert colours(path, folders) == [5]


def test_names_of_images_in_another_normal_form_of_unicode(tmp_path):
    png(5, tmp_path, "e\u0301te\u0301 {a} #1.png")
    png(6, tmp_path, "\u00e9t\u00e9s.png")
    assert open_image(tmp_path, "\u00e9t\u00e9 {a} #1.png").getpixel((0, 0)) == (5, 0, 0)
    assert open_image(tmp_path, "e\u0301te\u0301s.png").getpixel((0, 0)) == (6, 0, 0)


# rows


def count_rows(kind, annotations):
    """Rows of a dataset, counted without our readers."""
    if kind in ("json", "sharegpt"):
        return len(json.loads(annotations.read_text()))
    if kind == "jsonl":
        return int(subprocess.check_output(["grep", "-c", "[^[:space:]]", annotations]))
    if kind == "tar":
        names = [subprocess.check_output(["tar", "tf", path], text=True) for path in annotations.glob("*.tar")]
        return "".join(names).count(".json\n")
    return sum(pq.read_metadata(path).num_rows for path in annotations.glob("*.parquet"))


@pytest.mark.parametrize("kind", FORMATS)
def test_every_row_is_kept_or_rejected(kind, tiny_data, tmp_path):
    records, folder = list(tiny_data[0]), tiny_data[1]
    records += [make_record(99, image=False) | {"conversations": []}, make_record(98) | {"image": "gone.png"}]
    annotations = write(kind, records, folder, tmp_path / kind)
    manifest, rejected, _ = manifest_of(annotations, annotations if kind in ("parquet", "texts", "tar") else folder)
    assert len(rejected) == 2
    assert len(manifest) + len(rejected) == count_rows(kind, annotations) == len(records)


def test_a_subset_of_several_files_is_written_in_one_pass(tmp_path):
    """Names and rows of the files are kept, and a file without a selected row is not written."""
    lines = [[json.dumps({"id": f"{name}{i}", "conversations": TEXT_TURNS}) for i in range(3)] for name in "abc"]
    for name, of_file in zip("abc", lines):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(of_file))
    write_parquet(tmp_path / "d.parquet", [{"bytes": png(i), "path": None} for i in range(3)])
    dataset = open_dataset([str(tmp_path / f"{name}.jsonl") for name in "abc"] + [str(tmp_path / "d.parquet")])
    opened = []
    # an audit hook cannot be removed
    sys.addaudithook(lambda event, arguments: event == "open" and opened.append(str(arguments[0])))
    (tmp_path / "out").mkdir()
    assert dataset.write([8, 1, 0, 10], tmp_path / "out") == 12
    read = [path for path in opened if path.endswith(".jsonl") and "out" not in path]
    assert sorted(read) == [str(tmp_path / f"{name}.jsonl") for name in "abc"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.jsonl", "c.jsonl", "d.parquet"]
    assert (tmp_path / "out/a.jsonl").read_text().splitlines() == lines[0][:2]
    assert (tmp_path / "out/c.jsonl").read_text().splitlines() == lines[2][2:]
    assert colours(tmp_path / "out/d.parquet", [tmp_path / "out"]) == [1]


@given(st.lists(st.sampled_from(range(40)), unique=True, min_size=1), st.sampled_from([1, 3, 100]))
@settings(max_examples=20, deadline=None)
def test_any_subset_of_parquet_keeps_the_rows_and_the_schema(positions, row_group_size):
    table = pa.table({"id": list(range(40)), "conversations": [TEXT_TURNS] * 40})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.parquet"
        pq.write_table(table, path, row_group_size=row_group_size)
        (Path(folder) / "out").mkdir()
        assert open_dataset(path).write([*positions, 40], Path(folder) / "out") == 40
        written = pq.read_table(Path(folder) / "out/a.parquet")
    assert written.equals(table.take(sorted(positions)))
