"""The mix of many small tasks: even sizes, correct answers, splits without an image in common."""

import io
import itertools
import json
from collections import Counter

import pandas as pd
import pytest
from PIL import Image
from test_mini_mix import pixels

from coincide.base.sections import Dataset
from coincide.dataset.manifest import build_manifest
from coincide.demo import even_mix
from coincide.demo.drawings import Bar, Shape, Word
from coincide.demo.even_mix import FAMILIES, FAMILY_OF, SOURCES, write_even_mix


@pytest.fixture(scope="module")
def mix(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mix") / "even-mix"
    write_even_mix(folder, samples=640, test_samples=3, validation_samples=2, seed=1)
    return folder


def test_many_tasks_of_even_size_and_only_usable_samples(mix):
    records = json.loads((mix / "train.json").read_text())
    counts = Counter(record["source"] for record in records)
    assert len(records) == 640
    assert set(counts) == set(SOURCES)
    assert len(counts) > 50
    assert set(counts.values()) <= {12, 16}  # the first source gets the remainder of the division
    manifest, rejected = build_manifest(records, mix / "images", Dataset(annotations="-", shards=1))
    assert (len(manifest), len(rejected)) == (640, 0)


def test_the_splits_have_no_image_in_common(mix):
    tasks = Counter(FAMILY_OF.values())
    digests = {"train": {pixels(Image.open(path)) for path in (mix / "images").rglob("*.png")}}
    for split, count in (("evaluation", 3), ("validation", 2)):
        tables = {path.stem: pd.read_parquet(path) for path in (mix / split).iterdir()}
        assert {name: len(table) for name, table in tables.items()} == {n: count * k for n, k in tasks.items()}
        images = [i for table in tables.values() for i in table["image"] if i is not None]
        digests[split] = {pixels(Image.open(io.BytesIO(image["bytes"]))) for image in images}
    for first, second in itertools.combinations(digests.values(), 2):
        assert not first & second


SHAPES = [Shape("red", "circle", 0, 0), Shape("blue", "square", 0, 1), Shape("red", "square", 1, 1)]
BARS = [Bar("red", 2), Bar("blue", 5), Bar("black", 1)]


@pytest.mark.parametrize(
    ("family", "task", "facts", "answer"),
    [
        ("digit", "word", 7, "seven"), ("digit", "parity", 8, "even"), ("digit", "next", 9, "10"),
        ("two_digits", "difference", [3, 8], "5"), ("two_digits", "left", [3, 8], "3"),
        ("two_digits", "same", [3, 8], "no"), ("digit_grid", "many", [1, 2, 3], "no"),
        ("digit_grid", "parity", [1, 2, 3], "odd"), ("sign", "last", Word("taxi", "red"), "i"),
        ("sign", "spell", Word("taxi", "red"), "t a x i"), ("sign", "length", Word("taxi", "red"), "4"),
        ("chart", "tallest", BARS, "blue"),
        ("chart", "minimum", BARS, "1"),
        ("chart", "total", BARS, "8"),
        ("chart", "colours", BARS, "red blue black"),
        ("scene", "count", SHAPES, "3"), ("pair", "colour", SHAPES[:2], "red"), ("pair", "other", SHAPES[:2], "square"),
        ("pair", "place", SHAPES[:2], "top left"), ("pair", "same_row", SHAPES[:2], "yes"),
        ("pair", "same_colour", SHAPES[:2], "no"), ("pair", "caption", SHAPES[:2], "a red circle and a blue square"),
    ],
)  # fmt: skip
def test_answers_computed_by_hand(family, task, facts, answer):
    assert FAMILIES[family].tasks[task](None, facts)[1] == answer


class FixedDraws:
    """A random generator that returns given draws."""

    def __init__(self, *draws):
        self.draws = list(draws)

    def integers(self, *_, **__):
        return self.draws.pop(0)

    choice = integers


@pytest.mark.parametrize(
    ("task", "draws", "facts", "turn"),
    [
        ("_is_above", [6], 6, ("is the digit above 6?", "no")),
        ("_count_kind", [1], SHAPES, ("give the number of squares.", "2")),
        ("_any_kind", [2], SHAPES, ("can you find a triangle?", "no")),
        ("_count_colour", [0], SHAPES, ("how many things are red?", "2")),
        ("_any_colour", [3], SHAPES, ("is anything yellow?", "no")),
        ("_more", [(1, 0)], SHAPES, ("are there more squares than circles?", "yes")),
        ("_last_letter", [0], None, ("which letter ends stop?", "p")),
        ("_larger", [(12, 9)], None, ("which is larger, 12 or 9?", "12")),
    ],
)
def test_random_questions(task, draws, facts, turn):
    assert getattr(even_mix, task)(FixedDraws(*draws), facts) == turn
