"""Records of a coreset as trainers read them: all of one structure, with one type per key.

`datasets`, which most trainers load their data with, refuses a file in which a key has values of several types. The
records of JSON files keep their structure if they all have the same one and it is one that trainers read; all other
records are written in LLaVA's. In both cases:

- `id` is text; a sample without an id has that of the manifest.
- `image` is a name, or a list of names in all records if any has several; text-only records do not have the key.
  `images` is always a list.
- A key that is null is left out. A key whose values have no type in common is text in all records.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from coincide.base.tables import write_records
from coincide.dataset.conversation import SYSTEM, TURN_KEYS, image_list, to_llava
from coincide.dataset.dataset_format import IMAGE_COLUMNS, DatasetFormat, Positions
from coincide.dataset.record_checks import id_text

ROWS_PER_BATCH = 1024  # records whose types are inferred at once
TURN_FIELDS = (("from", "value"), ("role", "content"))  # keys of the speaker and of the text of a turn
SPEAKER_PAIRS = (("human", "gpt"), ("user", "assistant"))


@dataclass(frozen=True)
class Structure:
    """How records name their turns and images.

    Attributes:
        turns: key of the list of turns.
        speaker: key of the speaker of a turn.
        text: key of the text of a turn.
        user: speaker of the questions.
        assistant: speaker of the answers.
        images: key of the images; None if no record has an image.
    """

    turns: str = "conversations"
    speaker: str = "from"
    text: str = "value"
    user: str = "human"
    assistant: str = "gpt"
    images: str | None = None


def write_uniform_records(
    dataset: DatasetFormat, positions: Positions, sample_ids: Sequence[str], path: str | Path
) -> Structure:
    """Write the records at these positions as a JSON list, atomically.

    Args:
        dataset: the dataset.
        positions: (B,) rows of the dataset, ascending; each is the row of a usable sample.
        sample_ids: (B,) ids of the manifest, in the order of the positions.
        path: file to write.

    Returns:
        the structure of the written records.
    """
    folder = Path(path).parent
    folder.mkdir(parents=True, exist_ok=True)
    survey = _Survey()
    with tempfile.TemporaryFile("w+", encoding="utf-8", dir=folder) as lines:  # the dataset is read only once
        for record in dataset.pick(positions):
            record = record if dataset.is_json else to_llava(record)
            survey.add(record)
            lines.write(json.dumps(record) + "\n")
        lines.seek(0)
        structure, converts = survey.structure()
        records = map(json.loads, lines)
        uniform = Uniform(structure, survey.mixed_keys(), has_lists=survey.has_lists(structure))
        write_records(uniform.rows(map(to_llava, records) if converts else records, sample_ids), path)
    return structure


@dataclass(frozen=True)
class Uniform:
    """Gives records of one structure uniform types.

    Attributes:
        structure: of the records.
        mixed_keys: keys whose values become text.
        has_lists: images are lists of names.
    """

    structure: Structure
    mixed_keys: frozenset[str]
    has_lists: bool

    def rows(self, records: Iterator[dict[str, Any]], sample_ids: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield each record with uniform types."""
        for record, sample_id in zip(records, sample_ids, strict=True):
            yield self._row(record, sample_id)

    def _row(self, record, sample_id):
        row = {}
        for key, value in (record if "id" in record else {"id": None, **record}).items():
            names = image_list(value) if key in IMAGE_COLUMNS else []
            if key == "id":
                row[key] = sample_id if value in (None, "") else id_text(value)
            elif names:
                row[self.structure.images] = names if self.has_lists else names[0]
            elif key in IMAGE_COLUMNS or value is None or (key == SYSTEM and value == ""):
                continue
            elif key in self.mixed_keys and not isinstance(value, str):
                row[key] = json.dumps(value, ensure_ascii=False)
            else:
                row[key] = value
        if self.structure.images == "images":
            row.setdefault("images", [])
        return row


def dataset_info(name: str, structure: Structure, file_name: str = "coreset.json") -> dict[str, Any]:
    """The content of LLaMA-Factory's dataset_info.json for a file of uniform records.

    Args:
        name: name of the dataset.
        structure: of its records.
        file_name: the file, relative to the folder of dataset_info.json.
    """
    images = {"images": structure.images} if structure.images else {}
    return {
        name: {
            "file_name": file_name,
            "formatting": "sharegpt",
            "columns": {"messages": structure.turns, **images},
            "tags": {
                "role_tag": structure.speaker,
                "content_tag": structure.text,
                "user_tag": structure.user,
                "assistant_tag": structure.assistant,
                "system_tag": SYSTEM,
            },
        }
    }


class _Survey:
    """What has to be known of all records before the first is written: their structures and the types of their keys."""

    def __init__(self):
        self._structures = set()
        self._most_images = 0
        self._types = {}  # key -> Arrow type, or None if its values have no type in common
        self._values = {}  # key -> values whose type is not inferred yet
        self._count = 0

    def add(self, record):
        structure, images = _inspect(record)
        self._structures.add(structure)
        self._most_images = max(self._most_images, images)
        for key, value in record.items():
            if value is not None and key != "id" and key not in IMAGE_COLUMNS:
                self._values.setdefault(key, []).append(value)
        self._count += 1
        if self._count % ROWS_PER_BATCH == 0:
            self._infer_types()

    def structure(self):
        """(structure of the written records, whether records have to be converted to LLaVA's for it)."""
        self._infer_types()
        image_keys = {structure.images for structure in self._structures if structure and structure.images}
        others = {structure and replace(structure, images=None) for structure in self._structures}
        if len(others) == 1 and None not in others and len(image_keys) < 2:
            (structure,) = others
            if self._types[structure.turns] is not None:
                return replace(structure, images=next(iter(image_keys), None)), False
        return Structure(images="image" if self._most_images else None), True

    def has_lists(self, structure):
        return structure.images == "images" or self._most_images > 1

    def mixed_keys(self):
        self._infer_types()
        # turns have a common type once they are LLaVA's
        return frozenset(key for key, found in self._types.items() if found is None and key not in TURN_KEYS)

    def _infer_types(self):
        for key, values in self._values.items():
            self._types[key] = _common_type(self._types.get(key, pa.null()), values)
        self._values = {}


def _inspect(record):
    """(structure of a record, None if trainers do not read it; number of images)."""
    converted = to_llava(record)
    images = len(image_list(converted.get("image")))
    turn_keys = [key for key in TURN_KEYS if record.get(key) is not None]
    image_keys = [key for key in IMAGE_COLUMNS if image_list(record.get(key))]
    if len(turn_keys) != 1 or len(image_keys) > 1:
        return None, images
    turns = record[turn_keys[0]]
    if not isinstance(turns, list):
        return None, images
    for speaker, text in TURN_FIELDS:
        for user, assistant in SPEAKER_PAIRS:
            names = {"human": user, "gpt": assistant, SYSTEM: SYSTEM}
            expected = [(names[turn["from"]], turn["value"]) for turn in converted["conversations"]]
            # equal only if the conversion adds nothing: no image marks, no system turn, no joined parts
            if [(turn.get(speaker), turn.get(text)) for turn in turns] == expected:
                return Structure(turn_keys[0], speaker, text, user, assistant, next(iter(image_keys), None)), images
    return None, images


def _common_type(known, values):
    """The Arrow type of values of a known type and of more values; None if they have no type in common."""
    if known is None:
        return None
    try:
        schemas = [pa.schema([("value", found)]) for found in (known, pa.array(values).type)]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return None
