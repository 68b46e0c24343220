"""Near-duplicates within a dataset: copies of images under other names, and samples that repeat.

An image is a copy of the first image of the dataset that shows the same picture and is itself no copy
(`coincide.dataset.image_hashes`). So every copy was compared with the image that it is a copy of; similar images do not
chain. A sample repeats the first sample that has the same pictures and, normalised, the same questions and answers.
Another question about the same picture is another sample.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from coincide.dataset.dataset_format import DatasetFormat
from coincide.dataset.formats import to_llava
from coincide.dataset.image_hashes import SAME_PICTURE, SAME_PIXELS, PictureIndex
from coincide.dataset.images import image_names
from coincide.dataset.questions import text_digest

DUPLICATE_COLUMNS = {
    "sample_id": "str",
    "source": "str",
    "image": "str",
    "copy_of": "str",
    "kind": "str",
    "distance": "Int32",
    "repeats": "str",
}


def sample_records(dataset: DatasetFormat, manifest: pd.DataFrame) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield (row of the manifest, LLaVA record) of every sample, in the order of the dataset."""
    ordered = manifest.sort_values("position")
    for row, record in zip(ordered.itertuples(), dataset.pick(ordered["position"].to_numpy())):
        yield row, to_llava(record)


def all_image_names(records: Iterable[tuple[Any, dict[str, Any]]]) -> list[str]:
    """Names of all images of samples, each once, in the order of their first use."""
    return list(dict.fromkeys(name for _, record in records for name in image_names(record)))


def find_duplicates(records: Iterable[tuple[Any, dict[str, Any]]], hashes: pd.DataFrame) -> pd.DataFrame:
    """Samples with a copy of an earlier image, and samples that repeat an earlier sample.

    Args:
        records: of `sample_records`.
        hashes: table of the images' hashes, in the order of their first use.

    Returns:
        table with the columns of DUPLICATE_COLUMNS, one row per such sample, in the order of the dataset: image, its
        first image that is a copy; copy_of, the image that is kept; kind and distance of the copy; repeats, the id of
        the sample that is kept. The last is null if the sample has another text, and the four before it if its images
        have the same names as those of the sample that it repeats.
    """
    index = PictureIndex(hashes)
    originals, distances = _originals(index)
    row_of = {name: row for row, name in enumerate(index.images)}
    first_samples: dict[tuple, str] = {}
    rows = []
    for sample, record in records:
        names = image_names(record)
        images = [row_of.get(name, -1) for name in names]
        pictures = tuple(int(originals[row]) if row >= 0 else name for row, name in zip(images, names))
        digest = text_digest(turn["value"] for turn in record["conversations"])
        repeats = first_samples.setdefault((pictures, digest), sample.sample_id)
        copy = next((row for row in images if row >= 0 and originals[row] != row), None)
        if copy is None and repeats == sample.sample_id:
            continue
        row: tuple = (None,) * 4
        if copy is not None:
            original = int(originals[copy])
            kind = SAME_PIXELS if index.pixels[copy] == index.pixels[original] else SAME_PICTURE
            row = (index.images[copy], index.images[original], kind, int(distances[copy]))
        repeated = None if repeats == sample.sample_id else repeats
        rows.append((sample.sample_id, sample.source, *row, repeated))
    return pd.DataFrame(rows, columns=list(DUPLICATE_COLUMNS)).astype(DUPLICATE_COLUMNS)


def _originals(index):
    """(row of the image that each image is a copy of, itself if it is none; distance of their hashes)."""
    originals = np.arange(len(index))
    distances = np.zeros(len(index), int)
    for rows in index.rows_of.values():
        originals[rows] = rows[0]
    distinct = np.array(sorted(rows[0] for rows in index.rows_of.values()), int)
    for row, copies in zip(distinct, index.earlier_copies(distinct)):
        original = next((copy for copy in copies if originals[copy.row] == copy.row), None)
        if original is not None:
            same_pixels = index.rows_of[index.pixels[row]]
            originals[same_pixels], distances[same_pixels] = original.row, original.distance
    return originals, distances
