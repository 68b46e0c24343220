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
from coincide.demo.mini_mix import SOURCES, write_mini_mix

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
    assert set(counts) == set(SOURCES)
    assert len(counts) >= 8
    assert counts.most_common()[0][1] >= 10 * counts.most_common()[-1][1]
    assert {r["source"] for r in train if "image" not in r} == {"text_only"}
    assert any(len(r["conversations"]) > 4 for r in train)


def test_every_sample_is_usable(mix):
    manifest, rejected = build_manifest(records(mix, "train"), mix / "images", Dataset(annotations="-", shards=2))
    assert len(rejected) == 0
    assert manifest["source"].nunique() == len(SOURCES)


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
