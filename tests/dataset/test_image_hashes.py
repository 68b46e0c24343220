"""Copies of pictures: what is found, and what is not mistaken for a copy."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import COPIES, crop, drawings, photo_views
from PIL import Image

from coincide.dataset.image_hashes import (
    MAX_DISTANCE,
    SAME_PICTURE,
    SAME_PIXELS,
    Fingerprint,
    PictureIndex,
    fingerprint,
    variants,
    write_image_hashes,
)


def table(prints):
    """The table of images with these fingerprints."""
    rows = [(f"{i}.png", one.pixels, one.hash, one.contrast, one.small) for i, one in enumerate(prints)]
    return pd.DataFrame(rows, columns=["image", "pixels", "hash", "contrast", "small"])


def index_of(images):
    return PictureIndex(table(map(fingerprint, images)))


@pytest.fixture(scope="module")
def views():
    return photo_views()


@pytest.mark.parametrize("change", COPIES)
def test_a_changed_copy_of_a_photograph_is_found_and_no_other(views, change):
    index = index_of([COPIES[change](view) for view in views])
    found = [index.copies(variants(view)) for view in views]
    assert [[copy.row for copy in copies] for copies in found] == [[row] for row in range(len(views))]
    kinds = {copy.kind for copies in found for copy in copies}
    assert kinds == {SAME_PIXELS if change == "identical" else SAME_PICTURE}
    assert {copy.mirrored for copies in found for copy in copies} == {change == "mirrored"}


def test_another_picture_of_the_same_scene_is_no_copy():
    views = photo_views(step=100)  # neighbours have half of their content in common
    index = index_of(views)
    for row, view in enumerate(views):
        assert [copy.row for copy in index.copies(variants(view))] == [row]


def test_a_copy_that_lost_a_third_is_another_picture(views):
    index = index_of([crop(view, 0.33) for view in views])
    assert not any(index.copies(variants(view)) for view in views)


def test_drawings_with_similar_hashes_are_told_apart():
    images = drawings(300)
    prints = [fingerprint(image) for image in images]
    near = [
        (i, j)
        for i, j in combinations(range(len(prints)), 2)
        if np.bitwise_count(np.frombuffer(prints[i].hash, "u8") ^ np.frombuffer(prints[j].hash, "u8"))[0]
        <= MAX_DISTANCE
    ]
    assert len(near) > 100  # the hash takes them for copies
    index = PictureIndex(table(prints))
    found = [{copy.row for copy in index.copies([one])} - {row} for row, one in enumerate(prints)]
    # what is left has the same shape in the same colour, size and place
    assert sum(map(len, found)) / 2 <= 0.02 * len(near)


@pytest.mark.parametrize("colour", ["white", "black", (120, 10, 200)])
def test_blank_images_are_not_compared(colour):
    image = Image.new("RGB", (60, 40), colour)
    noisy = Image.fromarray(np.asarray(image) // 2 + np.random.default_rng(0).integers(0, 3, (40, 60, 3), np.uint8))
    for blank in (image, noisy):
        assert fingerprint(blank).is_flat
        assert index_of([blank, blank]).copies(variants(blank)) == []


def test_a_change_of_colours_is_another_picture(views):
    swapped = [Image.fromarray(np.asarray(view)[..., ::-1].copy()) for view in views]
    index = index_of(views)
    assert sum(bool(index.copies(variants(image))) for image in swapped) == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60))
def test_the_index_finds_what_comparing_all_pairs_finds(seed, count):
    rng = np.random.default_rng(seed)
    centre = rng.integers(0, 2, 64)
    small = rng.integers(0, 256, 768, np.uint8).tobytes()  # the same for all: only the hashes differ
    hashes = [np.packbits(np.where(rng.random(64) < rng.random() / 3, 1 - centre, centre)) for _ in range(count)]
    prints = [Fingerprint(bytes([i] * 16), bits.tobytes(), 50.0, small) for i, bits in enumerate(hashes)]
    index = PictureIndex(table(prints))
    for one, bits in zip(prints, hashes):
        distances = [int(np.bitwise_count(bits ^ other).sum()) for other in hashes]
        expected = {row: distance for row, distance in enumerate(distances) if distance <= MAX_DISTANCE}
        assert {copy.row: copy.distance for copy in index.copies([one])} == expected
    for row, copies in enumerate(index.earlier_copies(np.arange(count))):
        distances = [int(np.bitwise_count(hashes[row] ^ other).sum()) for other in hashes[:row]]
        assert [(c.row, c.distance) for c in copies] == [(i, d) for i, d in enumerate(distances) if d <= MAX_DISTANCE]


def test_an_empty_table_has_no_copies(views):
    assert index_of([]).copies(variants(views[0])) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_the_table_has_each_readable_image_in_order(tmp_path, processes, views):
    names = [f"{i}.png" for i in range(40)]
    for i, name in enumerate(names):
        views[i % len(views)].crop((0, 0, 100 + i, 90)).save(tmp_path / name)
    (tmp_path / "7.png").write_bytes(b"not an image")
    write_image_hashes(names, tmp_path, tmp_path / "hashes.parquet", processes=processes)
    hashes = pd.read_parquet(tmp_path / "hashes.parquet")
    assert hashes["image"].tolist() == [name for name in names if name != "7.png"]
    expected = fingerprint(Image.open(tmp_path / "12.png"))
    row = hashes.set_index("image").loc["12.png"]
    assert (row["pixels"], row["hash"], row["small"]) == (expected.pixels, expected.hash, expected.small)
    write_image_hashes([], tmp_path, tmp_path / "hashes.parquet")
    assert len(pd.read_parquet(tmp_path / "hashes.parquet")) == 0
