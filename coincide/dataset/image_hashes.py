"""Hashes of images: find copies of a picture without comparing all pairs.

A fingerprint of an image has a digest of its pixels, a perceptual hash (64 bits of the DCT of a small grey version;
imagehash's phash, Zauner 2010), and a small version in colour. Images with the same digest have the same pixels. Images
whose hashes differ in at most MAX_DISTANCE bits are candidates; they are the same picture if their small versions agree
as well. The second comparison is needed because drawings and scanned digits on a plain background often have the same
hash. Flat images, such as a blank page, are never compared: they have no content to recognise.

The limits were chosen from the measurements of bench/leaks.py.
"""

import hashlib
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import imagehash
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from coincide.base.files import replacing
from coincide.base.processes import end_with_parent
from coincide.base.progress import Progress
from coincide.dataset.images import ImageError, ImageFolders, open_image

HASH_SIDE = 8  # the hash has HASH_SIDE² bits
GREY_SIDE = 32  # pixels per side of the grey version that is hashed
SMALL_SIDE = 16  # pixels per side of the small version in colour
SCALED_SIDE = 256  # longest side of the image that crops are taken from
MAX_DISTANCE = 10  # bits
MAX_DIFFERENCE = 10.0  # root mean square over the small versions, in grey levels of 255, after a change of brightness
MAX_DECORRELATION = 0.03  # 1 - correlation of the small versions
FLAT_BELOW = 4.0  # grey levels; an image with less contrast is flat
GAINS = (0.6, 1.67)  # changes of contrast that the comparison allows
# a copy may be cropped, on all sides or at a corner: (left, top, right, bottom) of the part that is left
CROPS = tuple(
    (left, top, left + 1 - share, top + 1 - share)
    for share in (0.05, 0.10)
    for left, top in [(share / 2, share / 2), (0.0, 0.0), (share, 0.0), (0.0, share), (share, share)]
)
WHOLE = (0.0, 0.0, 1.0, 1.0)
# The index divides a hash into BANDS bands of BAND_BITS bits and looks up all bands that differ in at most BAND_FLIPS
# bits. Hashes that differ in less than BANDS * (BAND_FLIPS + 1) bits have such a band, so none is missed.
BANDS, BAND_BITS, BAND_FLIPS = 4, 16, 2
MAX_CANDIDATES = 1000  # images that one image is compared with, the most similar hashes first
IMAGES_PER_TASK = 32  # images that a process hashes at a time
ROWS_PER_BATCH = 4096
SAME_PIXELS, SAME_PICTURE = "same pixels", "same picture"

SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("pixels", pa.binary(16)),
        ("hash", pa.binary(HASH_SIDE**2 // 8)),
        ("contrast", pa.float32()),
        ("small", pa.binary(3 * SMALL_SIDE**2)),
    ]
)


@dataclass(frozen=True)
class Fingerprint:
    """What identifies the picture of an image.

    Attributes:
        pixels: 16 bytes, digest of width, height and RGB pixels.
        hash: 8 bytes, perceptual hash.
        contrast: standard deviation of the small version within each colour, in grey levels of 255.
        small: the small version, SMALL_SIDE² RGB pixels as bytes.
        mirrored: it is that of the mirrored image.
    """

    pixels: bytes
    hash: bytes
    contrast: float
    small: bytes
    mirrored: bool = False

    @property
    def is_flat(self) -> bool:
        """Whether the image has no content that a comparison could recognise."""
        return self.contrast < FLAT_BELOW


@dataclass(frozen=True)
class Copy:
    """An image of the index that shows the same picture.

    Attributes:
        row: in the table of the index.
        kind: SAME_PIXELS or SAME_PICTURE.
        distance: bits in which the perceptual hashes differ.
        mirrored: it shows the mirror image.
    """

    row: int
    kind: str
    distance: int
    mirrored: bool = False


def fingerprint(image: Image.Image) -> Fingerprint:
    """The fingerprint of an RGB image.

    >>> fingerprint(Image.new("RGB", (40, 30), "white")).is_flat
    True
    """
    digest = hashlib.blake2b(f"{image.width} {image.height} ".encode(), digest_size=16)
    digest.update(image.tobytes())
    return _fingerprint(digest.digest(), *_versions(image, image.convert("L"), WHOLE))


def variants(image: Image.Image) -> list[Fingerprint]:
    """Fingerprints that find copies of an RGB image: the image, its crops, and all of them mirrored."""
    whole = fingerprint(image)
    if whole.is_flat:
        return [whole]
    scaled = image.resize([min(side, SCALED_SIDE) for side in image.size], Image.Resampling.BOX)
    grey = scaled.convert("L")
    parts = [_versions(scaled, grey, part) for part in (WHOLE, *CROPS)]
    mirrored = [tuple(map(np.fliplr, versions)) for versions in parts]
    return [
        whole,
        *(_fingerprint(whole.pixels, *versions) for versions in parts[1:]),
        *(_fingerprint(whole.pixels, *versions, mirrored=True) for versions in mirrored),
    ]


def _versions(image, grey, part):
    """(GREY_SIDE, GREY_SIDE) grey version and (SMALL_SIDE, SMALL_SIDE, 3) small version of a part of an image."""
    left, top, right, bottom = part
    box = (left * image.width, top * image.height, right * image.width, bottom * image.height)
    # imagehash scales to this size itself, but not from a part of an image
    hashed = grey.resize((GREY_SIDE, GREY_SIDE), Image.Resampling.LANCZOS, box)
    return np.asarray(hashed), np.asarray(image.resize((SMALL_SIDE, SMALL_SIDE), Image.Resampling.BOX, box))


def _fingerprint(pixels, grey, small, *, mirrored=False):
    bits = imagehash.phash(Image.fromarray(grey), hash_size=HASH_SIDE).hash
    contrast = float(np.sqrt(small.reshape(-1, 3).var(axis=0).mean()))
    return Fingerprint(pixels, np.packbits(bits).tobytes(), contrast, small.tobytes(), mirrored)


def write_image_hashes(
    names: Iterable[str], folders: ImageFolders, path: str | Path, *, follow_links: bool = True, processes: int = 1
) -> None:
    """Hash images, and write a table of SCHEMA with one row per image.

    An image that cannot be read is left out.

    Args:
        names: names of the images, each once.
        folders, follow_links: as for `coincide.dataset.images.open_image`.
        path: Parquet file to write.
        processes: processes that read images.
    """
    names = list(names)
    chunks = [names[start : start + IMAGES_PER_TASK] for start in range(0, len(names), IMAGES_PER_TASK)]
    progress = Progress(len(names), "hashing images", unit="images")
    context = multiprocessing.get_context("fork")
    with (
        replacing(path) as temporary,
        pq.ParquetWriter(temporary, SCHEMA) as writer,
        context.Pool(processes, _start_process, (folders, follow_links)) as pool,
    ):
        rows: list[tuple] = []
        for chunk, hashed in zip(chunks, pool.imap(_hash_chunk, chunks)):
            rows += hashed
            progress.update(len(chunk))
            if len(rows) >= ROWS_PER_BATCH:
                _write_rows(writer, rows)
                rows = []
        _write_rows(writer, rows)
    progress.close()


def _start_process(folders, follow_links):
    global _open
    end_with_parent()

    def _open(name):
        return open_image(folders, name, follow_links=follow_links)


def _hash_chunk(names):
    rows = []
    for name in names:
        try:
            prints = fingerprint(_open(name))
        except ImageError:
            continue
        rows.append((name, prints.pixels, prints.hash, prints.contrast, prints.small))
    return rows


def _write_rows(writer, rows):
    columns = list(zip(*rows)) or [[]] * len(SCHEMA)
    writer.write_table(
        pa.table([pa.array(values, field.type) for values, field in zip(columns, SCHEMA)], schema=SCHEMA)
    )


class PictureIndex:
    """Finds the images of a table that show the same picture as another image.

    Args:
        hashes: table with the columns of SCHEMA.
    """

    def __init__(self, hashes: pd.DataFrame):
        import faiss

        self.images = hashes["image"].tolist()
        self.pixels = hashes["pixels"].tolist()
        self.is_flat = hashes["contrast"].to_numpy() < FLAT_BELOW
        self.hashes = _as_array(hashes["hash"], HASH_SIDE**2 // 8)
        self.small = _as_array(hashes["small"], 3 * SMALL_SIDE**2)
        self.rows_of: dict[bytes, list[int]] = {}  # digest of pixels -> rows
        for row in np.flatnonzero(~self.is_flat).tolist():
            self.rows_of.setdefault(self.pixels[row], []).append(row)
        # rows of each distinct hash are consecutive in _rows
        indexed = np.flatnonzero(~self.is_flat)
        distinct, number = np.unique(self.hashes[indexed], axis=0, return_inverse=True)
        order = np.argsort(number.ravel(), kind="stable")
        self._rows = indexed[order]
        self._starts = np.searchsorted(number.ravel()[order], np.arange(len(distinct) + 1))
        self._index = faiss.IndexBinaryMultiHash(HASH_SIDE**2, BANDS, BAND_BITS)
        self._index.nflip = BAND_FLIPS
        if len(distinct):
            self._index.add(np.ascontiguousarray(distinct))

    def __len__(self) -> int:
        return len(self.images)

    def copies(self, prints: Sequence[Fingerprint]) -> list[Copy]:
        """Images of the table that show the same picture as an image, by row.

        Args:
            prints: fingerprints of the image and of its variants (`variants`).
        """
        if prints[0].is_flat:
            return []
        found = {row: Copy(row, SAME_PIXELS, 0) for row in self.rows_of.get(prints[0].pixels, [])}
        prints = [other for other in prints if not other.is_flat]
        hashes = np.frombuffer(b"".join(other.hash for other in prints), np.uint8).reshape(len(prints), -1)
        for other, (rows, distances) in zip(prints, self._candidates(hashes)):
            new = np.array([row not in found for row in rows.tolist()], bool)
            rows, distances = rows[new], distances[new]
            same = is_same_picture(np.frombuffer(other.small, np.uint8)[None], self.small[rows])
            for row, distance in zip(rows[same].tolist(), distances[same].tolist()):
                found[row] = Copy(row, SAME_PICTURE, distance, other.mirrored)
        return [found[row] for row in sorted(found)]

    def earlier_copies(self, rows: NDArray[np.integer]) -> Iterator[list[Copy]]:
        """Yield, for each of these rows, the images of earlier rows that show the same picture, by row."""
        for start in range(0, len(rows), ROWS_PER_BATCH):
            batch = rows[start : start + ROWS_PER_BATCH]
            for row, (others, distances) in zip(batch.tolist(), self._candidates(self.hashes[batch])):
                earlier = others < row
                others, distances = others[earlier], distances[earlier]
                same = is_same_picture(self.small[row][None], self.small[others])
                copies = zip(others[same].tolist(), distances[same].tolist())
                yield [Copy(other, SAME_PICTURE, distance) for other, distance in sorted(copies)]

    def _candidates(self, hashes: NDArray[np.uint8]) -> list[tuple[NDArray, NDArray]]:
        """(rows whose hashes differ in at most MAX_DISTANCE bits, their distances) for each hash."""
        nothing = np.empty(0, int)
        if not len(self._rows):
            return [(nothing, nothing)] * len(hashes)
        limits, distances, numbers = self._index.range_search(np.ascontiguousarray(hashes), MAX_DISTANCE + 1)
        candidates = []
        for first, end in zip(limits[:-1].tolist(), limits[1:].tolist()):
            order = first + np.lexsort((numbers[first:end], distances[first:end]))
            rows = [self._rows[self._starts[n] : self._starts[n + 1]] for n in numbers[order]]
            of_rows = np.repeat(distances[order], [len(of_hash) for of_hash in rows]).astype(int)
            candidates.append((np.concatenate([nothing, *rows])[:MAX_CANDIDATES], of_rows[:MAX_CANDIDATES]))
        return candidates


def is_same_picture(small: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether small versions of images agree, up to a change of brightness and contrast.

    Args:
        small, others: (n, 3 · SMALL_SIDE²) or (1, …), RGB.

    Returns:
        (n,)
    """
    a, b = small.astype(np.float32), others.astype(np.float32)
    a_centred, b_centred = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    a_spread, b_spread = (np.sqrt((x**2).mean(axis=1, keepdims=True)) + 1e-3 for x in (a_centred, b_centred))
    correlation = (a_centred * b_centred).mean(axis=1) / (a_spread * b_spread)[:, 0]
    difference = np.sqrt(((a_centred * np.clip(b_spread / a_spread, *GAINS) - b_centred) ** 2).mean(axis=1))
    return (difference <= MAX_DIFFERENCE) & (1 - correlation <= MAX_DECORRELATION)


def _as_array(column, width):
    return np.frombuffer(b"".join(column), np.uint8).reshape(len(column), width)
