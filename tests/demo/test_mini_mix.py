"""The default mix: sizes, sources, determinism, and splits without an image in common."""

import hashlib
import io
import itertools
import json
from collections import Counter

import pandas as pd
import pytest
from PIL import Image

from coincide.base.errors import UserError
from coincide.base.sections import Dataset
from coincide.dataset.manifest import build_manifest
from coincide.demo import mini_mix
from coincide.demo.mini_mix import COMPOSITIONS, SOURCES, write_mini_mix
from coincide.demo.questions import is_held_out

TRAINED = {name for name, source in SOURCES.items() if source.weight}
SIZE = {"samples": 1500, "pretrain_samples": 500, "test_samples": 12, "validation_samples": 12, "seed": 3}


@pytest.fixture(scope="module")
def mix(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mix") / "mini-mix"
    write_mini_mix(folder, **SIZE)
    return folder


def records(mix, split):
    return json.loads((mix / f"{split}.json").read_text())


def test_sizes_and_sources(mix):
    train = records(mix, "train")
    assert len(train) == 1500
    assert len(records(mix, "pretrain")) == 500
    counts = Counter(r["source"] for r in train)
    assert set(counts) == TRAINED == set(SOURCES) - {COMPOSITIONS}
    assert len(counts) >= 8
    assert counts.most_common()[0][1] >= 10 * counts.most_common()[-1][1]
    assert {r["source"] for r in train if "image" not in r} == {"text_only"}
    assert any(len(r["conversations"]) > 4 for r in train)


def test_other_weights_change_the_sizes_of_the_sources_only(mix, tmp_path):
    write_mini_mix(tmp_path / "mix", **SIZE, weights={"counting": 10 * SOURCES["counting"].weight})
    usual, other = (Counter(r["source"] for r in records(folder, "train")) for folder in (mix, tmp_path / "mix"))
    assert sum(other.values()) == 1500
    assert other["counting"] / other["spatial"] == pytest.approx(10 * usual["counting"] / usual["spatial"], rel=0.05)
    assert other["caption"] / other["text_only"] == pytest.approx(usual["caption"] / usual["text_only"], rel=0.1)
    for name in ("counting", "spatial"):
        questions = [(folder / f"evaluation/{name}.parquet").read_bytes() for folder in (mix, tmp_path / "mix")]
        assert questions[0] == questions[1]


def test_every_sample_is_usable(mix):
    manifest, rejected = build_manifest(records(mix, "train"), mix / "images", Dataset(annotations="-", shards=2))
    assert len(rejected) == 0
    assert manifest["source"].nunique() == len(TRAINED)


def pixels(image):
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


def test_splits_have_no_image_in_common(mix):
    images = {split: {r["image"] for r in records(mix, split) if "image" in r} for split in ("train", "pretrain")}
    digests = {split: {pixels(Image.open(mix / "images" / n)) for n in names} for split, names in images.items()}
    for split in ("evaluation", "validation"):
        digests[split] = set()
        for name in SOURCES:
            table = pd.read_parquet(mix / split / f"{name}.parquet")
            assert len(table) == 12
            digests[split] |= {pixels(Image.open(io.BytesIO(i["bytes"]))) for i in table["image"] if i is not None}
    for first, second in itertools.combinations(digests.values(), 2):
        assert not first & second


def test_the_same_seed_gives_the_same_mix(mix, tmp_path):
    write_mini_mix(tmp_path / "same", **SIZE)
    for path in sorted(mix.rglob("*.json")) + sorted((mix / "images").rglob("*1.png")):
        assert path.read_bytes() == (tmp_path / "same" / path.relative_to(mix)).read_bytes()
    write_mini_mix(tmp_path / "other-seed", **{**SIZE, "seed": 4})
    assert (tmp_path / "other-seed/train.json").read_bytes() != (mix / "train.json").read_bytes()


def test_the_error_names_a_source_with_too_few_examples(tmp_path):
    with pytest.raises(UserError, match="source easy_vqa has only"):
        write_mini_mix(
            tmp_path / "x", samples=200000, pretrain_samples=10, test_samples=5, validation_samples=5, seed=0
        )
    assert list(tmp_path.iterdir()) == []


def test_an_image_has_several_samples_and_some_samples_are_near_copies(mix):
    images = Counter(record["image"] for record in records(mix, "train") if "image" in record)
    assert len(images) < 0.95 * sum(images.values())
    copies = [count for image, count in images.items() if image.startswith("digits_count/")]
    assert sum(count == 4 for count in copies) >= len(copies) - 1  # the last image may be cut off
    questions = {}
    for record in records(mix, "train"):
        if record["source"] == "digits_count":
            questions.setdefault(record["image"], set()).add(record["conversations"][1]["value"])
    assert all(len(answers) == 1 for answers in questions.values())


def test_evaluation_asks_compositions_that_no_sample_asks(monkeypatch, tmp_path):
    asked = {split: [] for split in ("test", "pretrain", "train", "validation")}
    example = mini_mix._example

    def record(rng, split, image, questions, *arguments, **options):
        asked[split] += questions
        return example(rng, split, image, questions, *arguments, **options)

    monkeypatch.setattr(mini_mix, "_example", record)
    write_mini_mix(tmp_path / "mix", **SIZE)
    for split in ("train", "pretrain"):
        assert sum(bool(question.composition) for question in asked[split]) > 200
        assert not any(is_held_out(question) for question in asked[split])
    for folder in ("evaluation", "validation"):
        table = pd.read_parquet(tmp_path / "mix" / folder / f"{COMPOSITIONS}.parquet")
        questions = [question for split in asked.values() for question in split]
        held_out = {(question.text, question.answer) for question in questions if is_held_out(question)}
        assert set(zip(table["question"], table["answer"])) <= held_out
        assert {question.split()[0] for question in table["question"]} >= {"what", "how"}


def test_only_training_samples_of_some_sources_have_wrong_answers(monkeypatch, tmp_path):
    wrong = Counter()

    def mark(rng, answer):
        return f"wrong {answer}"

    monkeypatch.setattr(mini_mix, "wrong_answer", mark)
    write_mini_mix(tmp_path / "mix", **SIZE)
    turns = Counter()
    for split in ("train", "pretrain"):
        for record in records(tmp_path / "mix", split):
            for turn in record["conversations"][1::2]:
                turns[split, record["source"]] += 1
                wrong[split, record["source"]] += turn["value"].startswith("wrong ")
    assert {key for key, count in wrong.items() if count} == {
        ("train", "counting"),
        ("train", "text_reading"),
        ("train", "conversation"),
    }
    assert 0.06 < wrong["train", "counting"] / turns["train", "counting"] < 0.14
    for split in ("evaluation", "validation"):
        table = pd.read_parquet(tmp_path / "mix" / split / "counting.parquet")
        assert not table["answer"].str.startswith("wrong ").any()
