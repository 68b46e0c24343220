"""Opening images of a dataset: inside its folder, of bounded size, whole."""

from pathlib import Path

from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 100_000_000  # above this an image is refused as a decompression bomb


class ImageError(ValueError):
    """An image that cannot be used; `reason` is one of the closed list in `coincide.manifest`."""

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

    Raises:
        ImageError: path outside the folder, missing, unreadable, truncated, or too many pixels.
    """
    path = image_path(folder, name)
    try:
        with Image.open(path) as image:
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
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ImageError("unreadable image", f"{name}: {error}") from None
