"""The cluster browser of a run: a static site that opens from a folder, without a server and without a network.

Browsers do not let a page read files of its folder, but let it load scripts. So all data are scripts that register
themselves by name: `clusters.js` has the list of clusters, `samples/NNNN.js` the samples of a group of clusters and
`images/NNNN.js` their thumbnails. `previews/NNN.js` has a strip of images per cluster for the list. A page loads only
what it shows.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import tempfile
from array import array
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby, islice, pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageOps

from coincide.base.errors import UserError
from coincide.base.files import replacing
from coincide.base.progress import Progress
from coincide.base.rows import unit_rows
from coincide.base.sections import Browser
from coincide.dataset.conversation import IMAGE_MARK
from coincide.dataset.formats import DatasetFormat, to_llava
from coincide.dataset.images import ImageError, ImageFolders, image_names, open_image
from coincide.reporting.words import distinctive_words

PAGE_FILES = ("index.html", "browser.css", "browser.js")
SAMPLES_PER_GROUP = 500  # samples per pair of files, about 2 MB of thumbnails
CHARACTERS_PER_SAMPLE = 2000
IMAGES_PER_SAMPLE = 4
SOURCES_PER_CLUSTER = 8
NEAREST = 8
WEBP_QUALITY = 60
PREVIEW_IMAGES, PREVIEW_PIXELS = 3, 48  # images of the strip of a cluster, and their width and height
PREVIEWS_PER_FILE = 200  # of clusters with adjacent shares, as the list is sorted at first
RECORDS_PER_BATCH = 256
CENTROIDS_PER_BLOCK = 512


def write_browser(
    folder: str | Path,
    *,
    run: str,
    manifest: pd.DataFrame,
    clusters: pd.DataFrame,
    cluster_stats: pd.DataFrame,
    centroids: NDArray,
    coresets: Mapping[tuple[str, str], pd.DataFrame],
    dataset: DatasetFormat,
    images: ImageFolders,
    settings: Browser,
    follow_links: bool = True,
    threads: int = 1,
) -> None:
    """Write the cluster browser.

    The dataset is read once, in its order. Texts and thumbnails wait in a temporary file on the disk of the site, so
    that memory holds some numbers per sample, but no text and no image. Each image that is shown is decoded once.

    Args:
        folder: folder to write; it appears when it is complete.
        run: name of the run, for titles.
        manifest: columns sample_id, source, position.
        clusters: columns sample_id, cluster, similarity, in the order of the manifest.
        cluster_stats: columns cluster, size, transferability, density, share.
        centroids: (K, d), row i of cluster i.
        coresets: (method, fraction) -> table of sample_id and rank. The first one decides which members are shown.
        dataset: as `coincide.dataset.formats.open_dataset` returns it.
        images: folders that image names are relative to (see `open_image`).
        settings: section of the config.
        follow_links: follow links in the images folder that lead out of it.
        threads: threads that make thumbnails; Pillow decodes and encodes in parallel.

    Raises:
        UserError: the tables of samples and of clusters have different samples.
    """
    if not manifest["sample_id"].equals(clusters["sample_id"]):
        raise UserError("the manifest and clusters.parquet have different samples: delete clusters.parquet and rerun")
    labels, similarity = clusters["cluster"].to_numpy(), clusters["similarity"].to_numpy()
    k = len(cluster_stats)
    ids = pd.Index(manifest["sample_id"])
    ranks = {key: _ranks(coreset, ids) for key, coreset in coresets.items()}
    main = next(iter(ranks.values()))
    shown = shown_members(labels, similarity, main, settings.members, k)
    rows = np.concatenate(shown)
    choices = [_Coreset.of(key, rank, labels, k, rows) for key, rank in ranks.items()]
    source_codes, sources = pd.factorize(manifest["source"])
    samples = pd.DataFrame(
        {
            "sample_id": ids[rows],
            "source": source_codes[rows],
            "similarity": similarity[rows],
            "position": manifest["position"].to_numpy()[rows],
        }
    )
    spans = [range(start, end) for start, end in pairwise(np.cumsum([0, *map(len, shown)]).tolist())]
    sizes = cluster_stats["size"].to_numpy()
    source_counts = _count_sources(labels, source_codes, main >= 0, k)
    with replacing(folder) as temporary, tempfile.TemporaryFile(dir=temporary.parent) as file:
        temporary.mkdir()
        content = _collect(samples["position"].to_numpy(), dataset, images, settings, follow_links, threads, file)
        words = distinctive_words(_texts(spans, content))
        groups = group_clusters([len(span) for span in spans])
        by_share = np.argsort(-cluster_stats["share"].to_numpy(), kind="stable")
        preview_places = np.empty(k, np.int64)
        preview_places[by_share] = np.arange(k)
        data = {
            "run": run,
            "samples": len(ids),
            "coresets": [{"method": c.method, "fraction": c.fraction, "kept": c.total} for c in choices],
            "sources": [str(source) for source in sources],
            "size": sizes.tolist(),
            **{name: _numbers(cluster_stats[name]) for name in ("transferability", "density", "share")},
            "kept": [choice.kept.tolist() for choice in choices],
            "words": words,
            "cluster_sources": [[counts[:2] for counts in cluster] for cluster in source_counts],
            "group": groups.tolist(),
            "preview": preview_places.tolist(),
            "previews_per_file": PREVIEWS_PER_FILE,
        }
        _write_script(temporary / "clusters.js", "clusters", data)
        nearest = nearest_clusters(centroids, sizes)
        pages = (
            {
                "cluster": cluster,
                "nearest": nearest[cluster],
                "sources": source_counts[cluster],
                "members": _members(span, samples, choices, content),
            }
            for cluster, span in enumerate(spans)
        )
        _write_groups(temporary, pages, groups, content)
        _write_previews(temporary, [spans[cluster] for cluster in by_share], content, threads)
        template = files("coincide.reporting") / "templates/browser"
        for name in PAGE_FILES:
            (temporary / name).write_bytes((template / name).read_bytes())


def shown_members(labels: NDArray, similarity: NDArray, rank: NDArray, bound: int, k: int) -> list[NDArray]:
    """Rows of the members of each cluster that its page shows: kept ones first, by rank, then others by similarity.

    A cluster of at most `bound` members is shown whole. Of a larger one, kept members take at most half of the places,
    or more where there are too few others; the others are spread evenly from the most similar to the least.

    Args:
        labels: (n,) cluster of each sample.
        similarity: (n,) similarity to the centroid.
        rank: (n,) rank in the coreset, -1 for a sample that is not kept.
        bound: largest number of members per cluster.
        k: number of clusters.

    Returns:
        one array of rows per cluster.
    """
    is_kept = rank >= 0
    order = np.lexsort((-similarity, np.where(is_kept, rank, len(rank)), labels))
    sizes = np.bincount(labels, minlength=k)
    kept = np.bincount(labels[is_kept], minlength=k)
    shown = []
    for members, n_kept in zip(np.split(order, np.cumsum(sizes)[:-1]), kept):
        if len(members) > bound:
            n = min(n_kept, max(bound // 2, bound - (len(members) - n_kept)))
            others = members[n_kept:]
            spread = np.linspace(0, len(others) - 1, bound - n).round().astype(np.int64)
            members = np.concatenate([members[:n], others[spread]])
        shown.append(members)
    return shown


def group_clusters(counts: Sequence[int]) -> NDArray[np.int64]:
    """(K,) group of each cluster: consecutive clusters, until a group has SAMPLES_PER_GROUP samples.

    Args:
        counts: samples that are shown of each cluster.
    """
    groups = np.zeros(len(counts), np.int64)
    group = in_group = 0
    for cluster, count in enumerate(counts):
        if in_group and in_group + count > SAMPLES_PER_GROUP:
            group, in_group = group + 1, 0
        groups[cluster], in_group = group, in_group + count
    return groups


def nearest_clusters(centroids: NDArray, sizes: NDArray, count: int = NEAREST) -> list[list[list[float]]]:
    """The most similar other clusters of each cluster: lists of [cluster, cosine of the centroids], best first.

    Args:
        centroids: (K, d).
        sizes: (K,) members; empty clusters are neighbours of none and have none.
        count: number of neighbours.
    """
    unit = unit_rows(centroids)
    nearest: list[list[list[float]]] = []
    for start in range(0, len(unit), CENTROIDS_PER_BLOCK):
        cosine = unit[start : start + CENTROIDS_PER_BLOCK] @ unit.T
        cosine[:, sizes == 0] = -np.inf
        for i, row in enumerate(cosine, start):
            row[i] = -np.inf
            best = np.argsort(-row, kind="stable")[: count if sizes[i] else 0]
            nearest.append([[int(j), round(float(row[j]), 3)] for j in best if row[j] > -np.inf])
    return nearest


@dataclass(frozen=True)
class _Coreset:
    """What the browser shows of a coreset.

    Attributes:
        total: samples that it keeps.
        kept: (K,) samples that it keeps of each cluster.
        ranks, picks: (shown samples,) rank in the coreset, and number of the pick in the cluster from 1; -1 and 0 for
            samples that are not kept.
    """

    method: str
    fraction: str
    total: int
    kept: NDArray
    ranks: NDArray
    picks: NDArray

    @classmethod
    def of(cls, key, rank, labels, k, rows):
        kept_rows = np.flatnonzero(rank >= 0)
        kept_rows = kept_rows[np.lexsort((rank[kept_rows], labels[kept_rows]))]
        kept = np.bincount(labels[kept_rows], minlength=k)
        first = np.repeat(np.cumsum(kept) - kept, kept)
        picks = np.zeros(len(rank), np.int32)
        picks[kept_rows] = np.arange(len(kept_rows)) - first + 1
        return cls(*key, len(kept_rows), kept, rank[rows], picks[rows])


def _ranks(coreset, ids):
    """(n,) rank of each sample in a coreset, -1 for a sample that is not kept."""
    rank = np.full(len(ids), -1, np.int32)
    rank[ids.get_indexer(coreset["sample_id"])] = coreset["rank"]
    return rank


def _count_sources(labels, sources, is_kept, k):
    """For each cluster its largest sources: lists of [source, members, kept members]."""
    table = pd.DataFrame({"cluster": labels, "source": sources, "kept": is_kept})
    counts = table.groupby(["cluster", "source"])["kept"].agg(["size", "sum"]).reset_index()
    counts = counts.sort_values(["cluster", "size"], ascending=[True, False], kind="stable")
    counts = counts.groupby("cluster").head(SOURCES_PER_CLUSTER)
    found: list[list[list[int]]] = [[] for _ in range(k)]
    for cluster, source, size, kept in counts.itertuples(index=False):
        found[cluster].append([int(source), int(size), int(kept)])
    return found


class _Spill:
    """Byte strings in a temporary file: appended once, then read by their number."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.ends = array("Q", [0])  # end of each byte string, after the start of the first

    def append(self, data: bytes) -> int:
        """Write a byte string and return its number."""
        self.file.write(data)
        self.ends.append(self.ends[-1] + len(data))
        return len(self.ends) - 2

    def read(self, number: int) -> bytes:
        """The byte string of a number; `flush` comes before the first one."""
        start, end = self.ends[number : number + 2]
        return os.pread(self.file.fileno(), end - start, start)

    def flush(self) -> None:
        """Make what was written readable."""
        self.file.flush()


class _Content:
    """Texts and thumbnails of the samples that are shown, in a temporary file."""

    def __init__(self, spill: _Spill, count: int):
        self.spill = spill
        self.records = np.full(count, -1, np.int64)  # number in the spill of each sample's record
        self.thumbnails: dict[str, int] = {}  # image name -> number in the spill

    def record(self, sample: int) -> dict[str, Any]:
        """turns, cut (characters left out), images (numbers of thumbnails) and more_images of a sample."""
        return json.loads(self.spill.read(self.records[sample]))

    def texts(self, samples: Iterable[int]) -> list[str]:
        """All turns of each sample as one text."""
        return ["\n".join(text for _, text in self.record(sample)["turns"]) for sample in samples]

    def thumbnail(self, number: int) -> bytes:
        """WebP image, empty for an image that cannot be opened."""
        return self.spill.read(number)


def _collect(positions, dataset, images, settings, follow_links, threads, file):
    """Read the records at these positions of the dataset, and make a thumbnail of each of their images."""
    content = _Content(_Spill(file), len(positions))
    order = np.argsort(positions, kind="stable")
    records = zip(order, map(to_llava, dataset.pick(positions[order])))
    progress = Progress(len(positions), "reading samples")

    def thumbnail(name):
        return make_thumbnail(images, name, settings.thumbnail_pixels, follow_links=follow_links)

    with ThreadPoolExecutor(threads) as pool:
        while batch := list(islice(records, RECORDS_PER_BATCH)):
            names = [name for _, record in batch for name in image_names(record)[:IMAGES_PER_SAMPLE]]
            new = [name for name in dict.fromkeys(names) if name not in content.thumbnails]
            for name, encoded in zip(new, pool.map(thumbnail, new)):
                content.thumbnails[name] = content.spill.append(encoded)
            for sample, record in batch:
                shortened = json.dumps(_shortened(record, content.thumbnails), ensure_ascii=False)
                content.records[sample] = content.spill.append(shortened.encode())
            progress.update(len(batch))
    progress.close()
    content.spill.flush()
    return content


def make_thumbnail(images: ImageFolders, name: str, pixels: int, *, follow_links: bool = True) -> bytes:
    """A small WebP image; empty if the image cannot be opened.

    Args:
        images, name, follow_links: as for `open_image`.
        pixels: largest width and height.
    """
    try:
        image = open_image(images, name, follow_links=follow_links)
    except ImageError:
        return b""
    image.thumbnail((pixels, pixels))
    return _webp(image)


def _texts(spans, content):
    """The texts of each cluster's samples."""
    progress = Progress(len(spans), "finding words", unit="clusters")
    for span in spans:
        yield content.texts(span)
        progress.update(1)
    progress.close()


def _shortened(record, thumbnails):
    """What the browser shows of a record, with at most CHARACTERS_PER_SAMPLE characters."""
    names = image_names(record)
    turns, left, cut = [], CHARACTERS_PER_SAMPLE, 0
    for turn in record["conversations"]:
        text = turn["value"]
        if len(names) == 1:  # of several images, the marks say which one is meant
            text = text.replace(IMAGE_MARK, "")
        text = text.strip()
        if left:
            turns.append([turn["from"], text[:left]])
        cut += max(0, len(text) - left)
        left = max(0, left - len(text))
    return {
        "turns": turns,
        "cut": cut,
        "images": [thumbnails[name] for name in names[:IMAGES_PER_SAMPLE]],
        "more_images": max(0, len(names) - IMAGES_PER_SAMPLE),
    }


def _members(span, samples, choices, content):
    """Members of a cluster for its page, each with its text, images, and picks per coreset."""
    return [
        {
            "id": sample.sample_id,
            "source": sample.source,
            "similarity": round(float(sample.similarity), 3),
            "picks": [
                [i, int(c.picks[number]), int(c.ranks[number])] for i, c in enumerate(choices) if c.picks[number]
            ],
            **content.record(number),
        }
        for number, sample in zip(span, samples.iloc[span].itertuples())
    ]


def _write_groups(folder, pages, groups, content):
    """Write the pages and the thumbnails of all groups; images are numbered anew in each group."""
    progress = Progress(len(groups), "writing clusters", unit="clusters")
    for group, of_group in groupby(pages, lambda page: groups[page["cluster"]]):
        thumbnails: dict[int, int] = {}
        group_pages = list(of_group)
        for member in (member for page in group_pages for member in page["members"]):
            member["images"] = [thumbnails.setdefault(image, len(thumbnails)) for image in member["images"]]
        encoded = [base64.b64encode(content.thumbnail(image)).decode() or None for image in thumbnails]
        for kind, data in (("samples", group_pages), ("images", encoded)):
            _write_script(folder / f"{kind}/{group:04d}.js", f"{kind}/{group:04d}", data)
        progress.update(len(group_pages))
    progress.close()


def _write_previews(folder, spans, content, threads):
    """Write the strips of clusters, in this order."""

    def encoded_strip(span):
        numbers = (image for sample in span for image in content.record(sample)["images"][:1])
        thumbnails = filter(None, map(content.thumbnail, numbers))
        strip = make_strip(islice(thumbnails, PREVIEW_IMAGES))
        return base64.b64encode(strip).decode() or None

    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(spans), PREVIEWS_PER_FILE):
            name = f"previews/{start // PREVIEWS_PER_FILE:03d}"
            strips = list(pool.map(encoded_strip, spans[start : start + PREVIEWS_PER_FILE]))
            _write_script(folder / f"{name}.js", name, strips)


def make_strip(thumbnails: Iterable[bytes]) -> bytes:
    """Images side by side, each cut to a square, as WebP; empty without images.

    Args:
        thumbnails: encoded images.
    """
    square = (PREVIEW_PIXELS, PREVIEW_PIXELS)
    tiles = [ImageOps.fit(Image.open(io.BytesIO(thumbnail)), square) for thumbnail in thumbnails]
    if not tiles:
        return b""
    strip = Image.new("RGB", (PREVIEW_PIXELS * len(tiles), PREVIEW_PIXELS))
    for place, tile in enumerate(tiles):
        strip.paste(tile, (PREVIEW_PIXELS * place, 0))
    return _webp(strip)


def _webp(image):
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=WEBP_QUALITY)
    return buffer.getvalue()


def _numbers(values):
    """Numbers for JSON with six digits, null for those that are not finite."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]


def _write_script(path, name, data):
    """Write a script that registers data under a name; text of the dataset stays inside JSON strings."""
    path.parent.mkdir(exist_ok=True)
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # outside of strings JSON has none of these; older engines end a line at the two separators
    for character in "<\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    path.write_text(f"coincideBrowser.add({json.dumps(name)}, {text});\n", encoding="utf-8")
