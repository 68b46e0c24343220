"""Datasets as people bring them: variants of JSON, system turns, media, links and values of pixels."""

import codecs
import json
import os

import numpy as np
import pytest
from conftest import make_record
from PIL import Image

from coincide.base.sections import Dataset
from coincide.dataset.formats import DatasetError, open_dataset, read_records, to_llava
from coincide.dataset.images import ImageError, image_names, open_image
from coincide.dataset.manifest import build_manifest, check_manifest
from coincide.dataset.uniform_records import write_uniform_records

SYSTEM_TURN = {"from": "system", "value": "Answer briefly."}


def talk(question="<image>\nWhat is shown?", answer="A ramp."):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def text_record(name="t", **keys):
    return {"id": name, "conversations": talk("Say hello.", "Hello."), **keys}


def sort(records, folder, **settings):
    """(record ids that are kept, dict of row -> (reason, detail) of the others)."""
    manifest, rejected = build_manifest(map(to_llava, records), folder, Dataset(annotations="-", shards=1, **settings))
    reasons = dict(zip(rejected["position"], zip(rejected["reason"], rejected["detail"])))
    assert sorted([*manifest["position"], *reasons]) == list(range(len(records)))
    return manifest.sort_values("position")["sample_id"].tolist(), reasons


@pytest.fixture
def folder(tmp_path):
    """A folder of images, with a link to a folder elsewhere, as LLaVA's images on a cluster are arranged."""
    images, shared = tmp_path / "images", tmp_path / "shared_copy"
    images.mkdir()
    shared.mkdir()
    Image.new("RGB", (40, 30), (200, 10, 10)).save(images / "plain.png")
    Image.new("RGB", (40, 30), (20, 10, 200)).save(shared / "linked.png")
    Image.new("RGB", (40, 30), (20, 10, 200)).save(tmp_path / "secret.png")
    (images / "coco").symlink_to(shared)
    return images


# links


def test_links_in_the_images_folder_are_followed_unless_the_config_forbids_it(folder):
    record = {"id": "a", "image": "coco/linked.png", "conversations": talk()}
    assert sort([record], folder)[0] == ["a"]
    assert open_image(folder, "coco/linked.png").getpixel((0, 0)) == (20, 10, 200)
    _, rejected = sort([record, text_record()], folder, follow_links=False)
    assert rejected[0][0] == "image path outside the folder"


@pytest.mark.parametrize("name", ["../secret.png", "coco/../../secret.png", "/etc/passwd", "a/../../secret.png"])
def test_the_text_of_a_path_never_leaves_the_folder(folder, name):
    with pytest.raises(ImageError) as error:
        open_image(folder, name)
    assert error.value.reason == "image path outside the folder"


def test_dots_after_a_link_are_resolved_as_text(folder):
    """The operating system would resolve coco/.. to the folder above the target of the link."""
    (folder.parent / "plain.png").write_bytes((folder.parent / "secret.png").read_bytes())
    assert open_image(folder, "coco/../plain.png").getpixel((0, 0)) == (200, 10, 10)


def test_an_absolute_path_inside_the_folder_is_read_also_through_a_link_to_the_folder(folder, tmp_path):
    (tmp_path / "alias").symlink_to(folder)
    for root in (folder, tmp_path / "alias"):
        for name in (folder / "plain.png", tmp_path / "alias" / "plain.png"):
            assert open_image(root, str(name)).size == (40, 30)


def test_a_link_to_a_device_is_not_opened(folder):
    os.mkfifo(folder / "pipe.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "zero.png"):
        with pytest.raises(ImageError) as error:
            open_image(folder, name)
        assert error.value.reason == "missing image"


# values of pixels


def ramp():
    return np.linspace(0, 1, 1200).reshape(30, 40)


RAMPS = {
    "sixteen_bit.png": lambda: Image.fromarray((ramp() * 65535).astype("u2")),
    "sixteen_bit.tif": lambda: Image.fromarray((ramp() * 65535).astype("u2")),
    "sixteen_bit.pgm": lambda: Image.fromarray((ramp() * 65535).astype("u2")),
    "float.tif": lambda: Image.fromarray(ramp().astype("f4")),
    "float_255.tif": lambda: Image.fromarray((ramp() * 255).astype("f4")),
    "signed.tif": lambda: Image.fromarray((ramp() * 2000 - 1000).astype("i4")),
    "integer.tif": lambda: Image.fromarray((ramp() * 65535).astype("i4")),
    "gray.png": lambda: Image.fromarray((ramp() * 255).astype("u1")),
    "gray_alpha.png": lambda: Image.fromarray((ramp() * 255).astype("u1")).convert("LA"),
    "palette.png": lambda: Image.fromarray((ramp() * 255).astype("u1")).convert("P"),
    "cmyk.tif": lambda: Image.fromarray((ramp() * 255).astype("u1")).convert("RGB").convert("CMYK"),
    "lab.tif": lambda: Image.merge("LAB", [RAMPS["gray.png"](), *[Image.new("L", (40, 30), 128)] * 2]),
}  # fmt: skip


@pytest.mark.parametrize("name", RAMPS)
def test_a_ramp_stays_a_ramp(tmp_path, name):
    RAMPS[name]().save(tmp_path / name)
    pixels = np.asarray(open_image(tmp_path, name))
    assert pixels.shape == (30, 40, 3)
    assert pixels.mean() == pytest.approx(127, abs=8)
    assert pixels.min() < 8
    assert pixels.max() > 247
    assert (np.diff(pixels[:, :, 0].ravel().astype(int)) >= -8).all()


def transparent(mode):
    clear = np.zeros((30, 40, 4), "u1")
    clear[5:25, 5:35] = (200, 10, 10, 255)
    image = Image.fromarray(clear)
    if mode == "P":
        return image.quantize(4)
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA"])
def test_transparent_pixels_are_white(tmp_path, mode):
    transparent(mode).save(tmp_path / "a.png")
    image = open_image(tmp_path, "a.png")
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert image.getpixel((20, 15)) == transparent(mode).convert("RGB").getpixel((20, 15))


def test_a_transparent_colour_is_white(tmp_path):
    Image.fromarray(np.uint8([[0, 200]])).save(tmp_path / "gray.png", transparency=0)
    Image.fromarray(np.uint16([[0, 65535 // 2]])).save(tmp_path / "deep.png", transparency=0)
    Image.new("RGB", (2, 1), (9, 9, 9)).save(tmp_path / "rgb.png", transparency=(9, 9, 9))
    assert np.asarray(open_image(tmp_path, "gray.png"))[0, :, 0].tolist() == [255, 200]
    assert np.asarray(open_image(tmp_path, "deep.png"))[0, 1, 0] == 127
    assert open_image(tmp_path, "rgb.png").getpixel((0, 0)) == (255, 255, 255)


def test_the_orientation_in_exif_is_not_applied(tmp_path):
    image = Image.new("RGB", (40, 30), (200, 10, 10))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path, "turned.jpg").size == (40, 30)


# system turns


SYSTEM_RECORDS = {
    "llava": {"id": "a", "conversations": [SYSTEM_TURN, *talk("Hi", "Ho")]},
    "key": {"id": "a", "system": "Answer briefly.", "conversations": talk("Hi", "Ho")},
    "messages": {
        "id": "a",
        "messages": [
            {"role": "system", "content": "Answer briefly."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Ho"},
        ],
    },
    "developer": {
        "id": "a",
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "Answer briefly."}]},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Ho"},
        ],
    },
    "alpaca": {"id": "a", "system": "Answer briefly.", "instruction": "Hi", "input": "", "output": "Ho"},
}


@pytest.mark.parametrize("kind", SYSTEM_RECORDS)
def test_a_system_turn_is_read_and_written_back(tmp_path, kind):
    record = SYSTEM_RECORDS[kind]
    assert to_llava(record) == {"id": "a", "conversations": [SYSTEM_TURN, *talk("Hi", "Ho")]}
    assert sort([record], tmp_path)[0] == ["a"]
    (tmp_path / "data.json").write_text(json.dumps([record]))
    (tmp_path / "data.jsonl").write_text(json.dumps(record))
    for name in ("data.json", "data.jsonl"):
        write_uniform_records(open_dataset(tmp_path / name), [0], ["a"], tmp_path / "coreset.json")
        assert read_records(tmp_path / "coreset.json") == [to_llava(record)]


def test_marks_of_images_are_added_after_the_system_turn():
    record = {"image": "a.png", "conversations": [SYSTEM_TURN, *talk("Hi")]}
    assert [turn["value"] for turn in to_llava(record)["conversations"]] == [
        "Answer briefly.",
        "<image>\nHi",
        "A ramp.",
    ]


def test_wrong_system_turns_are_rejected(tmp_path):
    records = [
        {"conversations": [*talk("Hi"), SYSTEM_TURN]},
        {"conversations": [SYSTEM_TURN, SYSTEM_TURN, *talk("Hi")]},
        {"conversations": [SYSTEM_TURN]},
        {"image": "a.png", "conversations": [{"from": "system", "value": "<image>"}, *talk("Hi")]},
        {"system": "other", "conversations": [SYSTEM_TURN, *talk("Hi")]},
    ]
    kept, rejected = sort([*records, text_record()], tmp_path)
    assert kept == ["t"]
    assert {reason for reason, _ in rejected.values()} == {"malformed turns"}


# media


@pytest.mark.parametrize(
    ("record", "named"),
    [
        ({"video": "clip.mp4", "conversations": talk("<video>\nWhat happens?")}, "video"),
        ({"conversations": talk("<video>\nWhat happens?")}, "<video>"),
        ({"conversations": talk("What is said?\n<audio>")}, "<audio>"),
        ({"audio": ["a.wav"], "conversations": talk("What is said?")}, "audio"),
        ({"conversations": talk("Picture 1: <img>plain.png</img>\nWhat is shown?")}, "<img>plain.png</img>"),
        ({"conversations": talk("<|vision_start|><|image_pad|><|vision_end|>What?")}, "<|vision_start|>"),
        ({"image": "plain.png", "conversations": talk("<image>\nWhat is in <region1>?")}, "<region1>"),
        ({"image": "plain.png", "conversations": talk("<image>\nFind <ref-object>.", "<bbox>")}, "<ref-object>"),
        ({"image_path": "plain.png", "conversations": talk("What is shown?")}, "image_path"),
        ({"image": "https://example.org/a.png", "conversations": talk()}, "https://example.org/a.png"),
        ({"image": "data:image/png;base64,AAAA", "conversations": talk()}, "embedded in the record"),
        ({"messages": [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}]}, "'video'"),
    ],
)
def test_media_that_are_not_read_have_a_reason_of_their_own(folder, record, named):
    kept, rejected = sort([record, text_record()], folder)
    assert kept == ["t"]
    reason, detail = rejected[0]
    assert reason == "unsupported medium"
    assert named in detail


@pytest.mark.parametrize(
    "text",
    [
        "How do I use <video> in HTML?",
        "Explain:\n<video>\n<source src='a.mp4'>\n</video>",
        'What is <img src="a.png"> for?',
        "Is <ref>the dog</ref><box>(1,2),(3,4)</box> right?",
        "<bbox>1 2 3 4</bbox>",
    ],
)
def test_text_about_media_is_text(tmp_path, text):
    assert sort([{"id": "a", "conversations": talk(text)}], tmp_path)[0] == ["a"]


# JSON


def test_openai_messages_with_image_urls_are_read(folder):
    record = {
        "id": "openai",
        "messages": [
            {"role": "system", "content": "Answer briefly."},
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "plain.png"}},
                    {"type": "image", "image": f"file://{folder}/coco/linked.png"},
                    {"type": "text", "text": "What is shown?"},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "A ramp."}]},
        ],
    }
    assert sort([record], folder)[0] == ["openai"]
    converted = to_llava(record)
    assert image_names(converted) == ["plain.png", f"{folder}/coco/linked.png"]
    assert converted["conversations"][1]["value"] == "<image>\n<image>\nWhat is shown?"


def test_images_that_contradict_each_other_are_rejected(folder):
    record = {"image": "plain.png", "images": ["other.png"], "conversations": talk()}
    _, rejected = sort([record, text_record()], folder)
    assert rejected[0][0] == "malformed record"
    assert "different images" in rejected[0][1]


@pytest.mark.parametrize(
    "image", ["", None, [], [""], [None], {"bytes": None, "path": None}, [{"bytes": None, "path": None}]]
)
def test_an_empty_image_is_no_image(tmp_path, image):
    for key in ("image", "images"):
        assert sort([text_record(**{key: image})], tmp_path)[0] == ["t"]
        assert "image" not in to_llava(text_record(**{key: image}))


def test_a_null_image_does_not_hide_the_images(folder):
    record = {"id": "a", "image": None, "images": ["plain.png"], "conversations": talk()}
    assert to_llava(record)["image"] == "plain.png"


def test_ids_that_are_numbers(tmp_path):
    records = [text_record(12.0), text_record(7), text_record(0.5), text_record(True), text_record(12)]
    kept, rejected = sort(records, tmp_path)
    assert kept == ["12", "7", "0.5"]
    assert {row: reason for row, (reason, _) in rejected.items()} == {3: "malformed record", 4: "duplicate id"}


@pytest.mark.parametrize(
    ("record", "turns"),
    [
        ({"instruction": "Sum.", "input": "1 + 1", "output": "2"}, ["Sum.\n1 + 1", "2"]),
        ({"instruction": "Hi", "output": "Ho", "history": [["a", "b"]]}, ["a", "b", "Hi", "Ho"]),
        ({"query": "Hi", "response": "Ho"}, ["Hi", "Ho"]),
        ({"conversations": '[{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]'}, ["Hi", "Ho"]),
        ({"conversations": {"from": ["human", "gpt"], "value": ["Hi", "Ho"]}}, ["Hi", "Ho"]),
        ({"messages": [{"from": None, "role": "user", "value": None, "content": "Hi"},
                       {"role": "model", "content": "Ho"}]}, ["Hi", "Ho"]),
    ],
)  # fmt: skip
def test_other_forms_of_a_conversation(tmp_path, record, turns):
    assert [turn["value"] for turn in to_llava(record)["conversations"]] == turns
    assert [turn["from"] for turn in to_llava(record)["conversations"]] == ["human", "gpt"] * (len(turns) // 2)
    assert len(sort([record], tmp_path)[0]) == 1


def test_an_unknown_form_of_a_record_is_named_with_its_keys(tmp_path):
    _, rejected = sort([{"question": "Hi", "answer": "Ho"}, text_record()], tmp_path)
    assert rejected[0][0] == "empty conversation"
    assert "'question', 'answer'" in rejected[0][1]


GOOD = [text_record("a", number=1.5), text_record("ü", other=[{}])]
TEXT = json.dumps(GOOD, ensure_ascii=False)
LINES = "\n".join(json.dumps(record, ensure_ascii=False) for record in GOOD)
FILES = {
    "list": TEXT.encode(),
    "indented": json.dumps(GOOD, indent=1).encode(),
    "byte_order_mark": codecs.BOM_UTF8 + TEXT.encode(),
    "utf16": TEXT.encode("utf-16"),
    "utf16_le": TEXT.encode("utf-16-le"),
    "utf32": TEXT.encode("utf-32"),
    "lines": LINES.encode(),
    "lines_utf16": LINES.encode("utf-16"),
    "lines_byte_order_mark": codecs.BOM_UTF8 + LINES.encode() + b"\n\n",
    "objects": "\n".join(json.dumps(record, indent=1) for record in GOOD).encode(),
    "wrapped": json.dumps({"version": {"a": [1]}, "licenses": [], "data": GOOD}).encode(),
    "wrapped_in_turn_key": json.dumps({"conversations": GOOD}).encode(),
}


@pytest.mark.parametrize("kind", FILES)
def test_json_is_read_as_people_write_it(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("coincide.dataset.json_stream.CHUNK", 7)  # every value is cut
    path = tmp_path / "data.json"
    path.write_bytes(FILES[kind])
    assert read_records(path) == GOOD


@pytest.mark.parametrize("kind", ["list", "lines", "lines_utf16", "lines_byte_order_mark"])
def test_json_lines_are_read_as_people_write_them(tmp_path, kind):
    path = tmp_path / "data.jsonl"
    path.write_bytes(FILES[kind])
    assert read_records(path) == GOOD


def test_nan_is_read_as_null_in_json_and_json_lines(tmp_path):
    line = '{"id": "a", "score": NaN, "limit": [-Infinity, 1e5], "messages": [{"role": "user", "content": "Hi"}, '
    line += '{"role": "assistant", "content": "NaN"}]}'
    (tmp_path / "data.json").write_text(f"[{line}]")
    (tmp_path / "data.jsonl").write_text(line)
    for name in ("data.json", "data.jsonl"):
        (record,) = open_dataset(tmp_path / name).raw()
        assert record["score"] is None
        assert record["limit"] == [None, 1e5]
        assert record["messages"][1]["content"] == "NaN"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must contain a JSON list|no samples"),
        ("[]", "contains no samples"),
        ("{}", r"one JSON object that is no sample \(keys: none\)"),
        ('{"a": 1, "b": {"c": 2}}', r"no sample \(keys: 'a', 'b'\)"),
        ('{"train": [{"id": 1}], "test": [{"id": 2}]}', r"several lists: 'train' \(1 entries\), 'test'"),
        ('{"a1": {"messages": []}, "a2": {"messages": []}}', "from ids to records"),
        ('[{"id": 1}', "not valid JSON after 1 samples"),
        ('[{"id": 1}] [', "more text after the end"),
        ('[{"id": 1}, {"id": nope}]', "not valid JSON after 1 samples"),
        ('[{"id": 1} {"id": 2}]', r"after 1 samples \(expected ',', got '{'\)"),
        ("[" * 100_000, "not valid JSON"),
        ("[" + "9" * 10_000 + "]", "not valid JSON"),
    ],
)
def test_the_error_says_what_a_json_file_has(tmp_path, content, message):
    path = tmp_path / "data.json"
    path.write_text(content)
    with pytest.raises(DatasetError, match=message) as error:
        list(open_dataset(path))
    assert str(path) in str(error.value)


def test_an_empty_file_of_lines_is_an_error(tmp_path):
    (tmp_path / "data.jsonl").write_text("\n\n")
    with pytest.raises(DatasetError, match="contains no samples"):
        read_records(tmp_path / "data.jsonl")


def test_text_that_is_not_valid_unicode_is_rejected_in_json_and_json_lines(tmp_path):
    lines = [json.dumps(text_record(f"a{i}", **keys)) for i, keys in enumerate([{}, {"note": "\ud800"}, {}])]
    lines.append(json.dumps(text_record("\udc00")))
    lines.append(json.dumps({"conversations": talk("\ud800")}))
    (tmp_path / "data.json").write_text("[" + ",".join(lines) + "]")
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    for name in ("data.json", "data.jsonl"):
        kept, rejected = sort(list(open_dataset(tmp_path / name).raw()), tmp_path)
        assert kept == ["a0", "a2"]
        assert {reason for reason, _ in rejected.values()} == {"malformed record"}
    (tmp_path / "bytes.json").write_bytes(b'[{"id": "x\xff"},' + lines[0].encode() + b"]")
    kept, rejected = sort(list(open_dataset(tmp_path / "bytes.json").raw()), tmp_path)
    assert kept == ["a0"]
    assert "not valid Unicode" in rejected[0][1]


# too many rejected


def test_when_no_sample_is_usable_the_message_has_the_reasons_with_examples(tmp_path):
    records = [{"id": f"s{i}", "conversations": [*talk("Hi"), SYSTEM_TURN]} for i in range(5)]
    records += [{"id": f"v{i}", "video": "a.mp4", "conversations": talk("Hi")} for i in range(20)]
    dataset = Dataset(annotations="-", shards=4)
    manifest, rejected = build_manifest(records, tmp_path, dataset)
    with pytest.raises(DatasetError) as error:
        check_manifest(manifest, rejected, dataset, rejected_path="logs/manifest.rejected.parquet")
    message = str(error.value)
    assert "25 of 25 samples (100.0%) were rejected" in message
    assert message.count("row ") == 6
    assert message.index("unsupported medium (20)") < message.index("malformed turns (5)")
    assert "logs/manifest.rejected.parquet" in message


def test_too_few_samples_are_reported_with_the_reasons(tmp_path):
    records = [make_record(i, image=False) for i in range(3)] + [{"id": "x"}]
    dataset = Dataset(annotations="-", shards=4, max_rejected=0.5)
    manifest, rejected = build_manifest(records, tmp_path, dataset)
    with pytest.raises(DatasetError, match=r"only 3 usable samples for 4 shards(.|\n)*empty conversation \(1\)"):
        check_manifest(manifest, rejected, dataset)
