"""Opening images of a dataset: inside its folder, of bounded size, whole."""

import io
import os
import re
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageFile, UnidentifiedImageError

MAX_PIXELS = 100_000_000  # above this an image is refused as a decompression bomb
IN_A_FILE = re.compile(r"(?P<file>.+\.(?:parquet|tar))#(?P<first>\d+)(?P<kind>[.+])(?P<second>\d+)")


class ImageError(ValueError):
    """An image that cannot be used; `reason` is one of the closed list in `coincide.dataset.manifest`."""

    def __init__(self, reason, detail):
        super().__init__(detail)
        self.reason = reason


def image_names(record):
    """Names of a LLaVA record's images: none, one (a string) or several (a list)."""
    image = record.get("image")
    return [] if image is None else [image] if isinstance(image, str) else list(image)


def image_path(folder, name):
    """Path of an image by its name relative to the folder.

    Raises:
        ImageError: the name leads out of the folder, also through links.
    """
    root = Path(folder).resolve()
    try:
        path = (root / name).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name too long
        raise ImageError("missing image", f"{name}: {error}") from None
    if not path.is_relative_to(root):
        raise ImageError("image path outside the folder", f"{name} leads out of {folder}")
    return path


def open_image(folder, name, *, decode=True):
    """Open an image, as RGB; with decode=False look at its header alone and return None.

    Args:
        folder: that names are relative to.
        name: of a file, or of an image inside a Parquet or tar file (see `coincide.dataset.formats`).

    Raises:
        ImageError: path outside the folder, missing, unreadable, truncated, or too many pixels.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # importing lmms-eval sets it, and half an image would pass as whole
    try:
        with _source(folder, name) as source, Image.open(source) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(
                    "decompression bomb", f"{name} has {image.width} × {image.height} pixels, over {MAX_PIXELS:,}"
                )
            return image.convert("RGB") if decode else None
    except ImageError:
        raise
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise ImageError("missing image", f"{name} is not in {folder}") from None
    except Image.DecompressionBombError as error:
        raise ImageError("decompression bomb", f"{name}: {error}") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, pa.ArrowException) as error:
        raise ImageError("unreadable image", f"{name}: {error}") from None


@contextmanager
def _source(folder, name):
    """Path of an image file, or the bytes of an image inside a file."""
    inside = IN_A_FILE.fullmatch(name)
    if not inside:
        yield image_path(folder, name)
        return
    path, first, second = image_path(folder, inside["file"]), int(inside["first"]), int(inside["second"])
    content = _cell(path, first, second) if inside["kind"] == "." else _span(path, first, second)
    if content is None:
        raise ImageError("missing image", f"{name} is not in {folder}")
    if isinstance(content, str):  # a Parquet file may name files instead
        yield image_path(folder, content)
    else:
        yield io.BytesIO(content)


def _span(path, offset, size):
    with open(path, "rb") as file:
        return os.pread(file.fileno(), size, offset) or None


def _cell(path, row, number):
    """Image of a Parquet file's row: bytes, the path it gives, or None."""
    _, starts = _parquet(str(path))
    group = next((i for i, start in enumerate(starts[1:]) if row < start), None)
    if group is None:
        return None
    images = _images(str(path), group)[row - starts[group]].as_py()
    images = images if isinstance(images, list) else [images]
    image = images[number] if number < len(images) else None
    if isinstance(image, dict):
        return image.get("bytes") or image.get("path")
    return image


@lru_cache(maxsize=4)
def _parquet(path):
    file = pq.ParquetFile(path)
    starts = [0]
    for group in range(file.num_row_groups):
        starts.append(starts[-1] + file.metadata.row_group(group).num_rows)
    return file, starts


@lru_cache(maxsize=2)  # rows are asked for in order
def _images(path, group):
    file, _ = _parquet(path)
    column = next(name for name in ("images", "image") if name in file.schema_arrow.names)
    return file.read_row_group(group, columns=[column])[column].combine_chunks()
