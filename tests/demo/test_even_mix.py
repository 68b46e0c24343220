"""The mix of many small tasks: even in size, answers right, splits without an image in common."""

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
from coincide.demo.even_mix import FAMILIES, FAMILY_OF, SOURCES, write_even_mix


@pytest.fixture(scope="module")
def mix(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mix") / "even-mix"
    write_even_mix(folder, samples=640, test_samples=3, validation_samples=2, seed=1)
    return folder


def test_many_tasks_of_even_size_that_can_all_be_used(mix):
    records = json.loads((mix / "train.json").read_text())
    counts = Counter(record["source"] for record in records)
    assert len(records) == 640
    assert set(counts) == set(SOURCES)
    assert len(counts) > 50
    assert set(counts.values()) <= {12, 16}  # what the division left over went to the first
    manifest, rejected = build_manifest(records, mix / "images", Dataset(annotations="-", shards=1))
    assert (len(manifest), len(rejected)) == (640, 0)


def test_questions_by_family_share_no_image_with_training_or_each_other(mix):
    tasks = Counter(FAMILY_OF.values())
    found = {"train": {pixels(Image.open(path)) for path in (mix / "images").rglob("*.png")}}
    for split, count in (("evaluation", 3), ("validation", 2)):
        tables = {path.stem: pd.read_parquet(path) for path in (mix / split).iterdir()}
        assert {name: len(table) for name, table in tables.items()} == {n: count * k for n, k in tasks.items()}
        images = [i for table in tables.values() for i in table["image"] if i is not None]
        found[split] = {pixels(Image.open(io.BytesIO(image["bytes"]))) for image in images}
    for one, other in itertools.combinations(found.values(), 2):
        assert not one & other


THINGS = [("red", "circle", 0, 0), ("blue", "square", 0, 1), ("red", "square", 1, 1)]


@pytest.mark.parametrize(
    ("family", "task", "facts", "answer"),
    [
        ("digit", "word", 7, "seven"), ("digit", "parity", 8, "even"), ("digit", "next", 9, "10"),
        ("two_digits", "difference", [3, 8], "5"), ("two_digits", "left", [3, 8], "3"),
        ("two_digits", "same", [3, 8], "no"), ("digit_grid", "many", [1, 2, 3], "no"),
        ("digit_grid", "parity", [1, 2, 3], "odd"), ("sign", "last", ("taxi", "red"), "i"),
        ("sign", "spell", ("taxi", "red"), "t a x i"), ("sign", "length", ("taxi", "red"), "4"),
        ("chart", "tallest", [("red", 2), ("blue", 5), ("black", 1)], "blue"),
        ("chart", "minimum", [("red", 2), ("blue", 5), ("black", 1)], "1"),
        ("chart", "total", [("red", 2), ("blue", 5), ("black", 1)], "8"),
        ("chart", "colours", [("red", 2), ("blue", 5), ("black", 1)], "red blue black"),
        ("scene", "count", THINGS, "3"), ("pair", "colour", THINGS[:2], "red"), ("pair", "other", THINGS[:2], "square"),
        ("pair", "place", THINGS[:2], "top left"), ("pair", "same_row", THINGS[:2], "yes"),
        ("pair", "same_colour", THINGS[:2], "no"), ("pair", "caption", THINGS[:2], "a red circle and a blue square"),
    ],
)  # fmt: skip
def test_answers_worked_by_hand(family, task, facts, answer):
    assert FAMILIES[family][1][task](None, facts)[1] == answer


class Fixed:
    """Draws that are given."""

    def __init__(self, *draws):
        self.draws = list(draws)

    def integers(self, *_, **__):
        return self.draws.pop(0)

    choice = integers


@pytest.mark.parametrize(
    ("task", "draws", "facts", "turn"),
    [
        ("_is_above", [6], 6, ("is the digit above 6?", "no")),
        ("_count_shape", [1], THINGS, ("give the number of squares.", "2")),
        ("_any_shape", [2], THINGS, ("can you find a triangle?", "no")),
        ("_count_colour", [0], THINGS, ("how many things are red?", "2")),
        ("_any_colour", [3], THINGS, ("is anything yellow?", "no")),
        ("_more", [(1, 0)], THINGS, ("are there more squares than circles?", "yes")),
        ("_last_letter", [0], None, ("which letter ends stop?", "p")),
        ("_larger", [(12, 9)], None, ("which is larger, 12 or 9?", "12")),
    ],
)
def test_questions_that_are_drawn(task, draws, facts, turn):
    assert getattr(even_mix, task)(Fixed(*draws), facts) == turn
