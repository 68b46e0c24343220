"""WebDataset tar files: consecutive members whose names are equal up to the first dot are one sample."""

import posixpath
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from coincide.dataset.dataset_format import IMAGE_COLUMNS, DatasetError, FileFormat
from coincide.dataset.json_stream import JsonStreamError, parse_json
from coincide.dataset.samples import UnreadableRow

IMAGE_EXTENSIONS = set(
    "jpg jpeg jpe jfif jp2 png webp gif bmp tif tiff ppm pgm pbm pnm tga ico avif heic heif jxl".split()
)
MEDIA_EXTENSIONS = {
    **dict.fromkeys("mp4 m4v mkv avi mov webm mpg mpeg wmv flv".split(), "video"),
    **dict.fromkeys("wav mp3 flac ogg m4a opus aac".split(), "audio"),
}
BLOCK = tarfile.BLOCKSIZE


class WebDataset(FileFormat):
    """A tar file with <key>.json and <key>.jpg, .png, … for each sample."""

    def raw(self) -> Iterator[Any]:
        """Yield each sample's JSON record with the names of its images.

        Raises:
            DatasetError: the file cannot be read, or its members cannot be divided into samples.
        """
        with open(self.path, "rb") as file:
            for key, members in self.rows():
                yield self._read_record(file, key, members)

    @contextmanager
    def writer(self, path: Path) -> Iterator[Callable[[tuple[str, list[tarfile.TarInfo]]], None]]:
        """Write the members of the samples."""
        with tarfile.open(self.path, "r:") as source, tarfile.open(path, "w") as target:

            def write(row):
                for member in row[1]:
                    target.addfile(member, source.extractfile(member))

            yield write

    def rows(self) -> Iterator[tuple[str, list[tarfile.TarInfo]]]:
        """Yield (key, list of tar members) of each sample."""
        seen = set()
        try:
            with tarfile.open(self.path, "r:") as file:
                members = (member for member in file if not member.isdir())
                for key, group in groupby(members, self._key):
                    if key in seen:
                        raise DatasetError(
                            f"{self.path}: the members of {key!r} are in several places, but those of one sample must "
                            "be next to each other; write the file again with its members sorted (tar --sort=name)"
                        )
                    seen.add(key)
                    yield key, list(group)
                self._check_end(file.offset)
        except (OSError, tarfile.TarError) as error:
            raise DatasetError(f"{self.path} cannot be read as a tar file: {error}") from None

    def _key(self, member):
        """The folder and the name up to the first dot, as the webdataset library divides names."""
        folder, name = posixpath.split(posixpath.normpath(member.name).lstrip("/"))
        key = name.partition(".")[0]
        if not key:
            raise DatasetError(
                f"{self.path}: the member {member.name!r} has no key before the first dot; rename or remove it"
            )
        return posixpath.join(folder, key)

    def _check_end(self, offset):
        """Check that the archive has its end mark, and nothing after it.

        A file that was cut between two members, or several archives in one file, would otherwise lose samples.
        """
        with open(self.path, "rb") as file:
            file.seek(offset)
            rest = file.read(BLOCK)
            if len(rest) < BLOCK:
                raise DatasetError(
                    f"{self.path} has no end mark, so it may have been cut off; copy or write the file again"
                )
            while rest:
                if rest.strip(b"\0"):
                    raise DatasetError(
                        f"{self.path} has more data after the end of the archive, or a damaged member at byte "
                        f"{offset}; write one archive per file"
                    )
                rest = file.read(2**20)

    def _read_record(self, file, key, members):
        """The record of a sample's .json member, with the names of its image members."""
        records = [member for member in members if _extension(member) == "json"]
        if len(records) > 1:
            raise DatasetError(
                f"{self.path}: the sample {key!r} has several .json members "
                f"({', '.join(member.name for member in records)}); a key ends at the first dot, so rename the members"
            )
        for member in members:
            if not member.isreg() or member.issparse():
                return UnreadableRow(
                    f"{member.name} in {self.path.name} is a link or a special file; store its content"
                )
        if not records:
            return UnreadableRow(f"{members[0].name} in {self.path.name} has no .json member with the same key")
        file.seek(records[0].offset_data)
        try:
            record = parse_json(file.read(records[0].size))
        except JsonStreamError as error:
            return UnreadableRow(f"not valid JSON ({error})")
        if not isinstance(record, dict):
            return record
        images = [
            f"{self.name}#{member.offset_data}+{member.size}"
            for member in sorted(members, key=_natural_order)
            if _extension(member) in IMAGE_EXTENSIONS
        ]
        if images:
            record = {name: value for name, value in record.items() if name not in IMAGE_COLUMNS} | {"images": images}
        for member in members:
            medium = MEDIA_EXTENSIONS.get(_extension(member))
            if medium:
                record[medium] = member.name
        return {"id": key, **record}


def _extension(member):
    _, dot, extension = posixpath.basename(member.name).rpartition(".")
    return extension.lower() if dot else ""


def _natural_order(member):
    """Sort key of members: 2.jpg is before 10.jpg."""
    parts = re.split(r"(\d+)", member.name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts], member.name
