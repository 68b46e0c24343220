"""Export of a coreset for trainers that read images from files only."""

import io
import shutil
from pathlib import Path

from PIL import Image

from coincide.base.files import replacing
from coincide.base.progress import Progress
from coincide.base.tables import write_records
from coincide.dataset.conversation import image_list
from coincide.dataset.dataset_format import IMAGE_COLUMNS, DatasetError
from coincide.dataset.images import ImageError, ImageFolders, find_image
from coincide.dataset.json_formats import JsonDataset

SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "JPEG2000": "jp2", "TIFF": "tif"}  # others: the name of the format
ROWS_PER_FOLDER = 1000


def export_coreset(coreset: str | Path, folders: ImageFolders, output: str | Path, *, samples: int) -> None:
    """Write a coreset to a folder, with the images that are inside Parquet and tar files as files.

    The folder has `coreset.json`, `dataset_info.json`, and `images/` with the original bytes of each image from a
    Parquet or tar file, named by the row of its sample in coreset.json. Images that are files already are not copied;
    `coreset.json` names them by their absolute path.

    Args:
        coreset: coreset.json, as `write_uniform_records` writes it, next to its dataset_info.json.
        folders: as for `open_image`.
        output: folder to write; it appears when it is complete.
        samples: number of records in the coreset, for the progress.

    Raises:
        DatasetError: an image cannot be read any more.
    """
    coreset = Path(coreset)
    with replacing(output) as folder:
        folder.mkdir()
        images = _ImageFiles(folders, folder)
        write_records(_with_files(JsonDataset(coreset).raw(), images, samples), folder / coreset.name)
        shutil.copyfile(coreset.with_name("dataset_info.json"), folder / "dataset_info.json")


def _with_files(records, images, samples):
    """Yield the records with the names of image files."""
    progress = Progress(samples, "exporting")
    for row, record in enumerate(records):
        for key in IMAGE_COLUMNS:
            if key in record:
                names = [images.name(image, row, i) for i, image in enumerate(image_list(record[key]))]
                record[key] = names if isinstance(record[key], list) else names[0]
        yield record
        progress.update(1)
    progress.close()


class _ImageFiles:
    """Writes images to the folder of an export."""

    def __init__(self, folders, output):
        self.folders, self.output = folders, output

    def name(self, image, row, number):
        """The name of the file of an image of the coreset, which is written if there is none.

        The name has nothing of the dataset's text, so it cannot lead out of the folder.
        """
        try:
            source = find_image(self.folders, image)
            if isinstance(source, Path):
                return str(source.absolute())
            with Image.open(io.BytesIO(source)) as opened:
                suffix = SUFFIXES.get(opened.format, opened.format.lower())
        except (ImageError, OSError) as error:
            raise DatasetError(
                f"{image} cannot be exported: {error}; the dataset has changed since its samples were selected, so "
                "select again"
            ) from None
        name = f"images/{row // ROWS_PER_FOLDER:05d}/{row:08d}-{number}.{suffix}"
        path = self.output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source)
        return name
