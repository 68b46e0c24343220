"""Writing a mix: samples of several sources, in splits that have no image in common."""

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from coincide.base.errors import UserError
from coincide.base.files import replacing
from coincide.dataset.conversation import IMAGE_MARK

# The order in which the splits of a source take their images; the position of a split is part of its seed.
SPLITS = ("test", "pretrain", "train", "validation")
QUESTION_FOLDERS = {"test": "evaluation", "validation": "validation"}  # splits of questions, not of training samples


@dataclass
class Example:
    """One conversation, with or without an image.

    Attributes:
        image: an image, the path of one, or None.
        turns: pairs of question and answer.
        facts: what a caption must mention.
    """

    image: Image.Image | Path | None
    turns: list[tuple[str, str]]
    facts: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Source:
    """A sub-dataset of a mix.

    Attributes:
        make: function of (random generator, split) that yields examples, endlessly or until its data is used up.
        weight: share of the training samples, relative to the other sources.
    """

    make: Callable[[np.random.Generator, str], Iterator[Example]]
    weight: int


def write_mix(
    output: Path,
    sources: dict[str, Source],
    sizes: dict[str, int],
    *,
    seed: int,
    family: Callable[[str], str] = lambda name: name,
) -> None:
    """Write a mix: <split>.json and images/ for training samples, <folder>/<family>.parquet for questions.

    Args:
        output: folder to write; an existing one is replaced when the new one is complete.
        sources: sub-datasets by name.
        sizes: number of samples of the splits train and pretrain, and number of questions per source of the splits
            test and validation. Splits that are not named are not written.
        seed: the same seed gives the same files.
        family: maps the name of a source to the name of the file for its questions.

    Raises:
        UserError: a source has fewer examples than its share.
    """
    counts = {split: _count_per_source(split, sizes[split], sources) for split in SPLITS if split in sizes}
    image_splits: dict[bytes, str] = {}  # digest of an image's pixels -> the split that has the image
    records: dict[str, list[dict[str, Any]]] = {split: [] for split in sizes if split not in QUESTION_FOLDERS}
    questions: dict[str, list[Example]] = {}  # by path
    with replacing(output) as folder:
        folder.mkdir()
        for name, source in sources.items():
            for split in counts:
                rng = np.random.default_rng([seed, zlib.crc32(name.encode()), SPLITS.index(split)])
                examples = _take_examples(source.make(rng, split), counts[split][name], name, split, image_splits)
                if split in QUESTION_FOLDERS:
                    questions.setdefault(f"{QUESTION_FOLDERS[split]}/{family(name)}.parquet", []).extend(examples)
                else:
                    records[split] += _write_samples(folder / "images", name, split, examples)
        for path, examples in questions.items():
            _write_questions(folder / path, examples)
        for split, split_records in records.items():
            order = np.random.default_rng([seed, SPLITS.index(split)]).permutation(len(split_records))
            shuffled = [split_records[i] for i in order]
            (folder / f"{split}.json").write_text(json.dumps(shuffled, indent=1))


def _count_per_source(split, size, sources):
    """Number of examples per source: `size` questions each, or samples in proportion to the weights."""
    if split in QUESTION_FOLDERS:
        return dict.fromkeys(sources, size)
    total_weight = sum(source.weight for source in sources.values())
    counts = {name: size * source.weight // total_weight for name, source in sources.items()}
    counts[next(iter(sources))] += size - sum(counts.values())  # the first source gets the remainder of the divisions
    return counts


def _take_examples(examples, count, name, split, image_splits):
    """Take `count` examples of a source, skipping those whose image is in another split."""
    taken = []
    while len(taken) < count:
        example = next(examples, None)
        if example is None:
            raise UserError(
                f"source {name} has only {len(taken)} examples for the split {split}, {count} are needed; "
                "reduce the sizes of the mix in the config"
            )
        if example.image is not None:
            digest = hashlib.sha256(_load_image(example.image).tobytes()).digest()
            if image_splits.setdefault(digest, split) != split:
                continue
        taken.append(example)
    return taken


def _load_image(image):
    if not isinstance(image, Path):
        return image
    with Image.open(image) as file:
        return file.convert("RGB")


def _write_samples(folder, source, split, examples):
    """Write each different image once; returns the LLaVA records."""
    if examples:
        (folder / source).mkdir(parents=True, exist_ok=True)
    records = []
    image_names = {}  # path or pixels -> name
    for i, example in enumerate(examples):
        record = {"id": f"{source}-{split}-{i:05d}", "source": source, "conversations": []}
        if example.image is not None:
            key = example.image if isinstance(example.image, Path) else example.image.tobytes()
            if key not in image_names:
                image_names[key] = f"{source}/{split}-{len(image_names):05d}.png"
                _write_image(example.image, folder / image_names[key])
            record["image"] = image_names[key]
        for turn, (question, answer) in enumerate(example.turns):
            mark = f"{IMAGE_MARK}\n" if turn == 0 and example.image is not None else ""
            record["conversations"] += [{"from": "human", "value": mark + question}, {"from": "gpt", "value": answer}]
        records.append(record)
    return records


def _write_image(image, path):
    if isinstance(image, Path):
        shutil.copyfile(image, path)
    else:
        image.save(path, compress_level=1)


def _write_questions(path, examples):
    """Write the first question of each example as a row of image, question, answer, facts."""
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    path.parent.mkdir(exist_ok=True)
    rows = [
        {
            "image": _load_image(example.image),
            "question": example.turns[0][0],
            "answer": example.turns[0][1],
            "facts": example.facts,
        }
        for example in examples
    ]
    features = Features(
        {
            "image": ImageFeature(),
            "question": Value("string"),
            "answer": Value("string"),
            "facts": List(Value("string")),
        }
    )
    Dataset.from_list(rows, features=features).to_parquet(path)
