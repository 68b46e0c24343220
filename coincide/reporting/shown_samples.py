"""The samples that a report shows: which, their text, and their thumbnails."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from coincide.dataset.conversation import IMAGE_MARK
from coincide.dataset.formats import to_llava
from coincide.dataset.images import ImageError, ImageFolders, image_names, open_image

MAP_SAMPLES = 1500  # drawn at random for the map of the activations
EXAMPLES = 4  # samples per cluster, nearest to the centroid
CLUSTERS_WITH_EXAMPLES = 200
THUMBNAIL_PIXELS = 64
THUMBNAIL_BYTES = 1_400_000  # all thumbnails of a page; without this limit the page could grow to any size
TEXT_LENGTH = 140


def choose_samples(samples: pd.DataFrame, clusters: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Rows to show: a random part for the map, then examples of clusters.

    Args:
        samples: cluster, similarity and kept (bool), one row per sample.
        clusters: clusters to give examples of; of more than 200, as many evenly spaced ones.

    Returns:
        (distinct rows, number of rows of the map, which come first).
    """
    rng = np.random.default_rng(0)
    drawn = np.sort(rng.permutation(len(samples))[:MAP_SAMPLES])
    chosen = clusters[evenly_spaced(len(clusters), CLUSTERS_WITH_EXAMPLES)]
    members = samples.assign(row=np.arange(len(samples)))[samples["cluster"].isin(chosen)]
    members = members.sort_values("similarity", ascending=False, kind="stable")
    examples = members.groupby(["cluster", "kept"], sort=False)["row"].head(EXAMPLES // 2).to_numpy()
    examples = np.sort(examples[~np.isin(examples, drawn)])
    return np.concatenate([drawn, examples]), len(drawn)


def evenly_spaced(n: int, count: int) -> NDArray[np.int64]:
    """At most `count` of the numbers 0..n-1, evenly spaced, the first and the last included."""
    return np.unique(np.linspace(0, n - 1, min(n, count)).round().astype(np.int64))


def describe_samples(
    manifest: pd.DataFrame, rows: NDArray[np.int64], dataset: Any, images: ImageFolders
) -> dict[str, list]:
    """Ids, texts and thumbnails of samples, as columns.

    Args:
        manifest: table with sample_id and position.
        rows: rows of the manifest.
        dataset: as `coincide.dataset.formats.open_dataset` returns it.
        images: folders that image names are relative to.

    Returns:
        id, question, answer (the first of each, shortened), thumbnail (index into `thumbnails`, -1 without an image,
        -2 if the page has no room for it), thumbnails (base64 of WebP; samples of the same image share one).
    """
    shown = manifest.iloc[rows]
    positions = sorted(shown["position"])
    records = dict(zip(positions, map(to_llava, dataset.pick(positions))))
    thumbnails = _Thumbnails(images)
    columns: dict[str, list] = {"id": shown["sample_id"].tolist(), "question": [], "answer": [], "thumbnail": []}
    by_position = {}
    # the examples of clusters are at the end and are the fewest: their thumbnails come first
    for position in shown["position"].tolist()[::-1]:
        by_position[position] = thumbnails.index(next(iter(image_names(records[position])), None))
    for position in shown["position"].tolist():
        turns = records[position]["conversations"]
        columns["question"].append(_first_text(turns, "human"))
        columns["answer"].append(_first_text(turns, "gpt"))
        columns["thumbnail"].append(by_position[position])
    return {**columns, "thumbnails": thumbnails.encoded}


def _first_text(turns, role):
    text = next((turn["value"] for turn in turns if turn["from"] == role), "")
    text = " ".join(text.replace(IMAGE_MARK, "").split())
    return text if len(text) <= TEXT_LENGTH else text[: TEXT_LENGTH - 1] + "…"


class _Thumbnails:
    def __init__(self, folders):
        self.encoded: list[str] = []
        self._folders = folders
        self._indices: dict[str | None, int] = {None: -1}
        self._left = THUMBNAIL_BYTES

    def index(self, name):
        """Index of an image's thumbnail, -1 if it cannot be opened, -2 if there is no room."""
        if name not in self._indices:
            self._indices[name] = self._add(name)
        return self._indices[name]

    def _add(self, name):
        if self._left <= 0:
            return -2
        try:
            image = open_image(self._folders, name)
        except ImageError:
            return -1
        image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=55, method=4)
        self._left -= buffer.tell()
        self.encoded.append(base64.b64encode(buffer.getvalue()).decode())
        return len(self.encoded) - 1
