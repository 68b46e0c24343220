"""Misses and false alarms of the search for copies of pictures, and its cost.

    .venv/bin/python bench/leaks.py [--images 150] [--output bench/results/leaks]

Copies: images of each group are changed by known amounts, and the originals are searched for among them, with the hash
alone at several distances, and as `coincide.dataset.image_hashes` does, with several limits of its second comparison.
False alarms: pairs of different images of the same group, which are hard cases: drawings and scanned digits that look
alike, and views of one photograph that overlap. Cost: processor time per image, and of the index.
"""

import io
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
from common import parser, write
from PIL import Image, ImageEnhance

from coincide.base.markdown import markdown_table
from coincide.dataset import image_hashes
from coincide.dataset.image_hashes import MAX_DISTANCE, PictureIndex, fingerprint, is_same_picture, variants
from coincide.demo.mini_mix import write_mini_mix

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from pictures import COPIES, WINDOW, crop, photo_views

DISTANCES = (0, 4, 6, 8, 10, 12, 14)
DIFFERENCES = (6.0, 8.0, 10.0, 12.0)  # limits of the second comparison
CHANGES = {
    **COPIES,
    "cropped by 10%": lambda image: crop(image, 0.10),
    "cropped by 10% at a corner": lambda image: crop(image, 0.10, corner=True),
    "brighter by 20%": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "darker by 20%": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
}
DRAWN = ("easy_vqa", "bar_chart", "digits_read", "digits_add", "digits_count", "text_reading", "counting", "spatial")
OVERLAPS = {"same scene, 50% overlap": 100, "same scene, 75% overlap": 50, "same scene, 90% overlap": 20}


def groups(count):
    """Group -> RGB images, all different: views of photographs, and what the demo's sources draw."""
    images = {"photographs": photo_views()}
    with tempfile.TemporaryDirectory() as folder:
        write_mini_mix(folder, samples=count * 20, pretrain_samples=20, test_samples=1, validation_samples=1, seed=0)
        for source in DRAWN:
            paths = sorted((Path(folder) / "images" / source).glob("*.png"))
            distinct = {image.tobytes(): image for image in (Image.open(path).convert("RGB") for path in paths)}
            images[source] = list(distinct.values())[:count]
    return images


def table(prints):
    """The table of images with these fingerprints."""
    rows = [(str(i), one.pixels, one.hash, one.contrast, one.small) for i, one in enumerate(prints)]
    return pd.DataFrame(rows, columns=["image", "pixels", "hash", "contrast", "small"])


def as_rows(values):
    """(n, bytes per value) array."""
    values = list(values)
    return np.frombuffer(b"".join(values), np.uint8).reshape(len(values), -1)


def hits(name, images):
    """One row per change: share of the images whose changed copy is found."""
    originals = [variants(image) for image in images]
    used = [i for i, prints in enumerate(originals) if not prints[0].is_flat]
    hashes = as_rows(prints[0].hash for prints in originals)
    rows = []
    for change, function in CHANGES.items():
        changed = [fingerprint(function(image)) for image in images]
        distances = np.bitwise_count(hashes ^ as_rows(one.hash for one in changed)).sum(axis=1)[used]
        row = {"group": name, "change": change, "images": len(used), "flat": len(images) - len(used)}
        index = PictureIndex(table(changed))
        for limit in DIFFERENCES:
            with mock.patch.object(image_hashes, "MAX_DIFFERENCE", limit):
                found = [index.copies(originals[i]) for i in used]
            is_found = [any(copy.row == i for copy in copies) for i, copies in zip(used, found)]
            row[f"found_{limit}"] = float(np.mean(is_found))
        rows.append(row | {f"hash_{limit}": float(np.mean(distances <= limit)) for limit in DISTANCES})
    return rows


def pair_alarms(name, first, second):
    """False alarms among pairs of different images: counts by hash, and after the second comparison."""
    prints = {id(image): fingerprint(image) for image in (*first, *second)}
    pairs = [(prints[id(a)], prints[id(b)]) for a, b in zip(first, second)]
    a, b = zip(*[pair for pair in pairs if not (pair[0].is_flat or pair[1].is_flat)])
    distances = np.bitwise_count(as_rows(one.hash for one in a) ^ as_rows(one.hash for one in b)).sum(axis=1)
    near = np.flatnonzero(distances <= MAX_DISTANCE)
    row = {"group": name, "pairs": len(a)}
    row |= {f"hash_{limit}": int((distances <= limit).sum()) for limit in DISTANCES}
    small = [as_rows(images[i].small for i in near) for images in (a, b)] if len(near) else None
    for limit in DIFFERENCES:
        with mock.patch.object(image_hashes, "MAX_DIFFERENCE", limit):
            row[f"found_{limit}"] = int(is_same_picture(*small).sum()) if small else 0
    return row


def all_pairs(name, images):
    """False alarms among all pairs of a group."""
    i, j = np.triu_indices(len(images), 1)
    return pair_alarms(name, [images[k] for k in i], [images[k] for k in j])


def neighbours(name, step):
    """False alarms among neighbouring views of a photograph."""
    views = photo_views(step)
    return pair_alarms(name, *zip(*pairwise(views)))


def cost():
    """Processor time in milliseconds per image of 640 × 427 pixels, and of the index per image searched for."""
    photo = Image.new("RGB", (640, 640))
    for i, view in enumerate(photo_views()):
        photo.paste(view, (WINDOW * (i % 4), WINDOW * (i // 4)))
    photo = photo.crop((0, 0, 640, 427))
    content = io.BytesIO()
    photo.save(content, "JPEG", quality=90)

    def milliseconds(function, times=100):
        function()
        start = time.process_time()
        for _ in range(times):
            function()
        return (time.process_time() - start) / times * 1e3

    figures = {
        "decode": milliseconds(lambda: Image.open(io.BytesIO(content.getvalue())).convert("RGB")),
        "fingerprint": milliseconds(lambda: fingerprint(photo)),
        "variants": milliseconds(lambda: variants(photo)),
    }
    rng = np.random.default_rng(0)
    count = 300_000
    # hashes of photographs are close to uniform; the small versions are all different
    random = pd.DataFrame(
        {
            "image": [str(i) for i in range(count)],
            "pixels": [i.to_bytes(16, "little") for i in range(count)],
            "hash": [row.tobytes() for row in rng.integers(0, 256, (count, 8), np.uint8)],
            "contrast": 50.0,
            "small": [bytes([i % 256]) * (3 * image_hashes.SMALL_SIDE**2) for i in range(count)],
        }
    )
    start = time.process_time()
    index = PictureIndex(random)
    figures["index_seconds"] = time.process_time() - start
    figures["index_rows"] = count
    prints = variants(photo)
    figures["search"] = milliseconds(lambda: index.copies(prints))
    return figures


def main():
    """Run the benchmark: print the tables and write results."""
    arguments = parser(__doc__)
    arguments.add_argument("--images", type=int, default=150, help="images of each group")
    options = arguments.parse_args()
    images = groups(options.images)
    found = [row for name, of_group in images.items() for row in hits(name, of_group)]
    wide = pd.DataFrame(found).pivot_table(
        index="group", columns="change", values=f"found_{image_hashes.MAX_DIFFERENCE}", sort=False
    )
    print(markdown_table(wide.map("{:.0%}".format).reset_index()))
    alarms = [all_pairs(name, of_group) for name, of_group in images.items()]
    alarms += [neighbours(name, step) for name, step in OVERLAPS.items()]
    print(markdown_table(pd.DataFrame(alarms)))
    figures = cost()
    print(figures)
    limits = {"distance": MAX_DISTANCE, "difference": image_hashes.MAX_DIFFERENCE}
    write(options.output, None, limits=limits, copies=found, different=alarms, cost=figures)


if __name__ == "__main__":
    main()
