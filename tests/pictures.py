"""Photographs and drawings for tests, and copies of them that were changed by known amounts."""

import io

import easy_vqa
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

WINDOW = 200  # pixels per side of a view of a photograph


def photo_views(step=WINDOW):
    """RGB views of two photographs; with step 100, neighbours show the same scene and overlap by half."""
    views = []
    for photo in map(Image.fromarray, load_sample_images().images):
        for left in range(0, photo.width - WINDOW + 1, step):
            for top in range(0, photo.height - WINDOW + 1, step):
                views.append(photo.crop((left, top, left + WINDOW, top + WINDOW)))
    return views


def drawings(count):
    """RGB images of easy-VQA, all different: one coloured shape each, on a plain ground."""
    paths = easy_vqa.get_train_image_paths()
    return [Image.open(paths[number]).convert("RGB") for number in sorted(paths)[:count]]


def as_jpeg(image, quality=60):
    """The image after JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def halve(image):
    """The image at half its width and height."""
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)


def crop(image, share, corner=False):
    """The image without this share of its width and height, taken from all sides or from the top left corner."""
    width, height = (round(side * share) for side in image.size)
    left, top = (width, height) if corner else (width // 2, height // 2)
    return image.crop((left, top, left + image.width - width, top + image.height - height))


COPIES = {
    "identical": lambda image: image.copy(),
    "quality 60": as_jpeg,
    "half size": halve,
    "half size, quality 60": lambda image: as_jpeg(halve(image)),
    "cropped by 5%": lambda image: crop(image, 0.05),
    "cropped by 5% at a corner": lambda image: crop(image, 0.05, corner=True),
    "mirrored": ImageOps.mirror,
}
