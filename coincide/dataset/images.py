"""Opening the images of a dataset safely: inside its folder, of limited size, and complete."""

import io
import os
import re
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageFile, UnidentifiedImageError

from coincide.dataset.samples import Reason

MAX_PIXELS = 100_000_000  # a larger image is rejected as a decompression bomb
# the name of an image that is stored inside a file: part.parquet#<row>.<number> or shard.tar#<offset>+<size>
EMBEDDED_IMAGE = re.compile(
    r"(?P<file>.+\.(?:parquet|tar))#(?:(?P<row>\d+)\.(?P<number>\d+)|(?P<offset>\d+)\+(?P<size>\d+))"
)


class ImageError(ValueError):
    """An image that cannot be used; the message says why.

    Attributes:
        reason: the reason to reject the sample with.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def image_names(record: dict[str, Any]) -> list[str]:
    """Names of a LLaVA record's images; `image` is missing, one name, or a list of names."""
    image = record.get("image")
    return [] if image is None else [image] if isinstance(image, str) else list(image)


def image_path(folder: str | Path, name: str) -> Path:
    """Path of an image file, links resolved.

    Args:
        folder: folder of the images.
        name: path relative to the folder.

    Raises:
        ImageError: the path is outside the folder, possibly through a link, or cannot be resolved.
    """
    root = Path(folder).resolve()
    try:
        path = (root / name).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, or a name that is too long
        raise ImageError(Reason.MISSING_IMAGE, f"{name}: {error}") from None
    if not path.is_relative_to(root):
        raise ImageError(Reason.IMAGE_OUTSIDE_FOLDER, f"{name} is outside {folder}")
    return path


def open_image(folder: str | Path, name: str) -> Image.Image:
    """Open and decode an image as RGB.

    Args:
        folder: folder that names are relative to.
        name: name of a file, or of an image inside a Parquet or tar file (see `coincide.dataset.formats`).

    Raises:
        ImageError: the image is outside the folder, missing, unreadable, truncated, or has too many pixels.
    """
    with _open_lazily(folder, name) as image:
        return image.convert("RGB")


def check_image_header(folder: str | Path, name: str) -> None:
    """Check an image as `open_image` does, without decoding it: a truncated file is not noticed.

    Raises:
        ImageError: as `open_image`.
    """
    with _open_lazily(folder, name):
        pass


@contextmanager
def _open_lazily(folder, name):
    """An image whose header was read and whose size is allowed; any fault while it is open becomes an ImageError."""
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # lmms-eval sets it on import, and truncated images would be accepted
    try:
        with _open_source(folder, name) as source, Image.open(source) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(
                    Reason.DECOMPRESSION_BOMB,
                    f"{name} has {image.width} × {image.height} pixels, over {MAX_PIXELS:,}",
                )
            yield image
    except ImageError:
        raise
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise ImageError(Reason.MISSING_IMAGE, f"{name} is not in {folder}") from None
    except Image.DecompressionBombError as error:
        raise ImageError(Reason.DECOMPRESSION_BOMB, f"{name}: {error}") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, pa.ArrowException) as error:
        raise ImageError(Reason.UNREADABLE_IMAGE, f"{name}: {error}") from None


@contextmanager
def _open_source(folder, name):
    """The path of an image file, or a buffer with the bytes of an image inside a Parquet or tar file."""
    match = EMBEDDED_IMAGE.fullmatch(name)
    if not match:
        yield image_path(folder, name)
        return
    path = image_path(folder, match["file"])
    if match["row"]:
        content = _read_parquet_image(path, int(match["row"]), int(match["number"]))
    else:
        content = _read_bytes(path, int(match["offset"]), int(match["size"]))
    if content is None:
        raise ImageError(Reason.MISSING_IMAGE, f"{name} is not in {folder}")
    if isinstance(content, str):  # a Parquet file may contain paths instead of bytes
        yield image_path(folder, content)
    else:
        yield io.BytesIO(content)


def _read_bytes(path, offset, size):
    """Bytes of a file from an offset, or None beyond its end."""
    with open(path, "rb") as file:
        return os.pread(file.fileno(), size, offset) or None


def _read_parquet_image(path, row, number):
    """An image in a row of a Parquet file: its bytes, its path if that is what the file has, or None."""
    _, group_starts = _open_parquet(str(path))
    group = next((i for i, end in enumerate(group_starts[1:]) if row < end), None)
    if group is None:
        return None
    images = _read_image_column(str(path), group)[row - group_starts[group]].as_py()
    images = images if isinstance(images, list) else [images]
    image = images[number] if number < len(images) else None
    if isinstance(image, dict):
        return image.get("bytes") or image.get("path")
    return image


@lru_cache(maxsize=4)
def _open_parquet(path):
    """(file, first row of each row group and, last, the number of rows)."""
    file = pq.ParquetFile(path)
    group_starts = [0]
    for group in range(file.num_row_groups):
        group_starts.append(group_starts[-1] + file.metadata.row_group(group).num_rows)
    return file, group_starts


@lru_cache(maxsize=2)  # images are mostly opened in the order of the rows
def _read_image_column(path, group):
    file, _ = _open_parquet(path)
    column = next(name for name in ("images", "image") if name in file.schema_arrow.names)
    return file.read_row_group(group, columns=[column])[column].combine_chunks()
