"""Misses and false alarms of the search for copies of pictures, and its cost.

    .venv/bin/python bench/leaks.py [--images 150] [--output bench/results/leaks]

Copies: images of each group are changed by known amounts and searched for in the table of the originals' changes, with
the hash alone at several distances, and as `coincide.dataset.image_hashes` does. False alarms: pairs of different images
of the same group, which are hard cases: drawings and scanned digits that look alike, and views of the same photograph
that overlap. Cost: processor time per image, and of the index.
"""

import io
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

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


def bits(prints):
    """(n, 8) hashes."""
    return np.frombuffer(b"".join(one.hash for one in prints), np.uint8).reshape(len(prints), -1)


def hits(name, images):
    """One row per change: share of the images whose changed copy is found."""
    originals = [variants(image) for image in images]
    used = [i for i, prints in enumerate(originals) if not prints[0].is_flat]
    rows = []
    for change, function in CHANGES.items():
        changed = [fingerprint(function(image)) for image in images]
        distances = np.bitwise_count(bits([prints[0] for prints in originals]) ^ bits(changed)).sum(axis=1)[used]
        index = PictureIndex(table(changed))
        found = [index.copies(originals[i]) for i in used]
        rows.append(
            {
                "group": name,
                "change": change,
                "images": len(used),
                "flat": len(images) - len(used),
                "found": float(np.mean([any(copy.row == i for copy in copies) for i, copies in zip(used, found)])),
                "others": sum(copy.row != i for i, copies in zip(used, found) for copy in copies),
                **{f"hash_{limit}": float(np.mean(distances <= limit)) for limit in DISTANCES},
            }
        )
    return rows


def pair_alarms(name, first, second):
    """False alarms among pairs of images that are different: counts by hash, and after the second comparison."""
    a, b = ([fingerprint(image) for image in images] for images in (first, second))
    usable = [not (x.is_flat or y.is_flat) for x, y in zip(a, b)]
    a, b = ([one for one, use in zip(prints, usable) if use] for prints in (a, b))
    distances = np.bitwise_count(bits(a) ^ bits(b)).sum(axis=1)
    small = [
        np.frombuffer(b"".join(one.small for one in prints), np.uint8).reshape(len(prints), -1) for prints in (a, b)
    ]
    same = np.concatenate(
        [is_same_picture(x, y) for x, y in zip(*(np.array_split(s, 1 + len(a) // 4096) for s in small))]
    )
    return {
        "group": name,
        "pairs": len(a),
        **{f"hash_{limit}": int((distances <= limit).sum()) for limit in DISTANCES},
        **{f"both_{limit}": int(((distances <= limit) & same).sum()) for limit in DISTANCES},
    }


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
    wide = pd.DataFrame(found).pivot_table(index="group", columns="change", values="found", sort=False)
    print(markdown_table(wide.map("{:.0%}".format).reset_index()))
    alarms = [all_pairs(name, of_group) for name, of_group in images.items()]
    alarms += [neighbours(name, step) for name, step in OVERLAPS.items()]
    print(markdown_table(pd.DataFrame(alarms)))
    figures = cost()
    print(figures)
    write(options.output, None, limit=MAX_DISTANCE, copies=found, different=alarms, cost=figures)


if __name__ == "__main__":
    main()
