"""Opening the images of a dataset safely: inside its folder, of limited size, and complete.

Images are RGB as a viewer shows them on a white page. The orientation in EXIF is not applied: LLaVA's trainer does not
apply it either.
"""

import io
import os
import posixpath
import re
import unicodedata
from collections.abc import Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageFile, UnidentifiedImageError

from coincide.dataset.conversation import image_list
from coincide.dataset.parquet_format import image_column
from coincide.dataset.samples import Reason

ImageFolders = str | Path | Sequence[str | Path]  # the folder of image files, and folders of files with images inside
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
    return image_list(record.get("image"))


def image_path(folder: str | Path, name: str, *, follow_links: bool = True) -> Path:
    """Path of an image file.

    The text of a name never leaves the folder. Links inside the folder, which its owner made, may lead elsewhere.

    Args:
        folder: folder of the images.
        name: path relative to the folder, or an absolute path inside it.
        follow_links: allow links that lead out of the folder.

    Raises:
        ImageError: the path is outside the folder, or cannot be resolved.
    """
    root, resolved_root = Path(os.path.abspath(folder)), Path(folder).resolve()
    path = Path(os.path.normpath(root / name))  # "..", too, is resolved as text
    try:
        if path.is_relative_to(resolved_root):
            root = resolved_root  # an absolute name, where the folder itself was given through a link
        is_inside = path.is_relative_to(root)
        if not path.exists():
            path = _other_unicode_form(path)
        if not (is_inside and follow_links):
            is_inside = (is_inside or os.path.isabs(name)) and path.resolve().is_relative_to(resolved_root)
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, or a name that is too long
        raise ImageError(Reason.MISSING_IMAGE, f"{_shorten(name)}: {error}") from None
    if not is_inside:
        raise ImageError(Reason.IMAGE_OUTSIDE_FOLDER, f"{_shorten(name)} is outside {folder}")
    return path


def _other_unicode_form(path):
    """The path in another normal form of Unicode if a file has it: macOS stores é as e and an accent."""
    for form in ("NFC", "NFD"):
        other = Path(unicodedata.normalize(form, str(path)))
        if other.exists():
            return other
    return path


def _shorten(name):
    return name if len(name) <= 200 else f"{name[:100]}…{name[-60:]}"


def open_image(folders: ImageFolders, name: str, *, follow_links: bool = True) -> Image.Image:
    """Open and decode an image as RGB.

    Args:
        folders: folder that names of image files are relative to, and after it the folders that names of Parquet and
            tar files are relative to.
        name: name of a file, or of an image inside a Parquet or tar file (see `coincide.dataset.formats`).
        follow_links: allow links that lead out of the folder.

    Raises:
        ImageError: the image is outside the folder, missing, unreadable, truncated, or has too many pixels.
    """
    with _open_lazily(folders, name, follow_links) as image:
        return to_rgb(image)


def check_image_header(folders: ImageFolders, name: str, *, follow_links: bool = True) -> None:
    """Check an image as `open_image` does, without decoding it: a truncated file is not noticed.

    Raises:
        ImageError: as `open_image`.
    """
    with _open_lazily(folders, name, follow_links):
        pass


def find_image(folders: ImageFolders, name: str) -> Path | bytes:
    """The path of an image file, or the original bytes of an image that is inside a Parquet or tar file.

    Args:
        folders: as for `open_image`.
        name: name of an image of a usable sample.

    Raises:
        ImageError: the image is outside the folder or missing.
    """
    folders = _folder_list(folders)
    with _image_faults(folders, name):
        return _find_source(folders, name, follow_links=True)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode of Pillow to RGB, as a viewer shows it on a white page.

    Transparent pixels become white. Gray values of more than 8 bits are scaled: of 16-bit formats by their range, of
    TIFF with 32-bit integers or floats by the smallest of the ranges 0 to 1, 255 and 65,535 that has all values, or
    else by their own range. The first frame of an animation is used, and the orientation in EXIF is not applied.
    """
    if image.mode.startswith("I") or image.mode == "F":
        return _scale_gray(image)
    if image.mode in ("RGBa", "La"):  # premultiplied
        image = image.convert(image.mode.upper())
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    page = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(page, image).convert("RGB")


def _scale_gray(image):
    values = np.asarray(image).astype(np.float32)
    is_finite = np.isfinite(values)
    values = np.where(is_finite, values, 0)
    low, high = values.min(initial=0), values.max(initial=0)
    is_16_bit = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if is_16_bit:
        high = 65535
    else:
        limits = ([1] if image.mode == "F" else []) + [255, 65535]
        top = next((limit for limit in limits if low >= 0 and high <= limit), None)
        if top is None:
            values -= low
            top = high - low
        high = top
    gray = Image.fromarray(np.clip(np.rint(values * (255 / high)), 0, 255).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray.paste(255, mask=Image.fromarray((np.asarray(image) == transparent).astype(np.uint8) * 255))
    return gray.convert("RGB")


@contextmanager
def _open_lazily(folders, name, follow_links):
    """An image whose header was read and whose size is allowed; any fault while it is open becomes an ImageError."""
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # lmms-eval sets it on import, and truncated images would be accepted
    folders = _folder_list(folders)
    with _image_faults(folders, name):
        source = _find_source(folders, name, follow_links)
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(
                    Reason.DECOMPRESSION_BOMB,
                    f"{_shorten(name)} has {image.width} × {image.height} pixels, over {MAX_PIXELS:,}",
                )
            yield image


def _folder_list(folders):
    return [folders] if isinstance(folders, str | Path) else list(folders)


@contextmanager
def _image_faults(folders, name):
    """Turn every fault of an image into an ImageError."""
    try:
        yield
    except ImageError:
        raise
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise ImageError(Reason.MISSING_IMAGE, f"{_shorten(name)} is not in {folders[0]}") from None
    except Image.DecompressionBombError as error:
        raise ImageError(Reason.DECOMPRESSION_BOMB, f"{_shorten(name)}: {error}") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, pa.ArrowException) as error:
        raise ImageError(Reason.UNREADABLE_IMAGE, f"{_shorten(name)}: {error}") from None


def _find_source(folders, name, follow_links):
    """The path of an image file, or the bytes of an image inside a Parquet or tar file."""
    match = EMBEDDED_IMAGE.fullmatch(name)
    if not match:
        return _regular_file(image_path(folders[0], name, follow_links=follow_links))
    path = _embedding_file(folders, match["file"], follow_links)
    if match["row"]:
        content = _read_parquet_image(path, int(match["row"]), int(match["number"]))
    else:
        content = _read_bytes(path, int(match["offset"]), int(match["size"]))
    if not content:
        detail = f"{name} has neither bytes nor a path" if match["row"] else f"{name} is not in {folders[-1]}"
        raise ImageError(Reason.MISSING_IMAGE, detail)
    if not isinstance(content, str):
        return content
    # a Parquet file may contain paths instead of bytes: inside the images folder, or relative to the file's folder
    image = image_path(folders[0], content, follow_links=follow_links)
    if not image.exists() and not os.path.isabs(content):
        folder_in_root = posixpath.dirname(match["file"])
        root = next(root for root in folders if (Path(root) / match["file"]).exists())
        image = image_path(root, posixpath.join(folder_in_root, content), follow_links=follow_links)
    return _regular_file(image)


def _embedding_file(folders, name, follow_links):
    """The Parquet or tar file with this name, in the first of the folders that has it."""
    paths = [image_path(folder, name, follow_links=follow_links) for folder in folders]
    return next(filter(Path.exists, paths), paths[-1])


def _regular_file(path):
    """The path of a file; a device or a pipe, which a link may lead to, is never opened."""
    if not path.is_file():
        raise FileNotFoundError(path)
    return path


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
    column = image_column(file.schema_arrow)
    if column is None:
        raise ValueError("the file has no column of images")
    return file.read_row_group(group, columns=[column])[column].combine_chunks()
