"""Evaluation leaks: samples of a dataset that show the evaluation's images, or ask its questions.

A sample leaks a document of a task if one of its images has the same pixels or is the same picture, mirrored or cropped
included (`coincide.dataset.image_hashes`), whatever it asks. A question by itself counts only where it identifies the
document: if neither has an image and the first question of the sample is the document's, or if the text has at least
LONG characters and at most RARE documents and RARE samples have it. "Describe the image." is no leak.
"""

import io
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from coincide.dataset.image_hashes import SAME_PICTURE, SAME_PIXELS, Copy, PictureIndex, variants
from coincide.dataset.images import ImageError, ImageFolders, image_names, open_image
from coincide.dataset.questions import forms, normalise, questions
from coincide.evaluation.documents import Document, TaskEnd
from coincide.evaluation.results import EvaluationError

SAME_QUESTION = "same question"
KINDS = (SAME_PIXELS, SAME_PICTURE, SAME_QUESTION)
LONG = 100  # characters of a normalised question
RARE = 10
THUMBNAILS = 200  # images of each task of which a thumbnail is kept for the examples
EXAMPLES = 4  # pairs of each task and kind that the report shows
THUMBNAIL_PIXELS = 128
SHOWN_CHARACTERS = 300

LEAK_COLUMNS = {
    "task": "str",
    "document": "int64",
    "sample_id": "str",
    "source": "str",
    "image": "str",
    "kind": "str",
    "distance": "Int32",
    "mirrored": "bool",
    "same_question": "bool",
    "documents": "int64",
}
TASK_COLUMNS = {
    "task": "str",
    "documents": "int64",
    "images": "int64",
    "leaked_documents": "int64",
    "failed": "bool",
    "problem": "str",
}
EXAMPLE_COLUMNS = {
    **{name: LEAK_COLUMNS[name] for name in ("task", "document", "sample_id", "kind", "distance", "mirrored")},
    "question": "str",
    "sample_question": "str",
    "task_image": "object",
    "sample_image": "object",
}


@dataclass
class Leaks:
    """What was found.

    Attributes:
        pairs: table with the columns of LEAK_COLUMNS: for each task, sample and kind the nearest document, one with the
            same question if there is one; `documents` is the number of documents of the task that match.
        tasks: table with the columns of TASK_COLUMNS.
        examples: table with the columns of EXAMPLE_COLUMNS; the images are JPEG, null where there is none.
    """

    pairs: pd.DataFrame
    tasks: pd.DataFrame
    examples: pd.DataFrame


class _Asked(NamedTuple):
    task: str
    number: int
    text: str  # of the question, shortened
    has_image: bool


@dataclass
class _Documents:
    """The documents of all tasks, as far as the search needs them."""

    rows: list[_Asked] = field(default_factory=list)
    ends: list[TaskEnd] = field(default_factory=list)
    images: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # task -> keys
    with_form: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))  # normalised text -> rows
    # normalised text -> rows of documents without an image that ask nothing else
    text_only: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    copies: dict[str, list[Copy]] = field(default_factory=dict)  # key of an image -> its copies in the dataset
    with_image: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))  # key -> rows, of such images
    thumbnails: dict[str, bytes] = field(default_factory=dict)


def check_compared(tasks: pd.DataFrame) -> None:
    """Stop a run that is to drop leaks if a task could not be compared with the dataset.

    Args:
        tasks: table of `Leaks.tasks`.

    Raises:
        EvaluationError: with every such task.
    """
    failed = tasks[tasks["failed"]]
    if len(failed):
        raise EvaluationError(
            "dataset.leaks is drop, but some tasks cannot be compared with the dataset:\n"
            + "".join(f"  {row.task}: {row.problem}\n" for row in failed.itertuples())
            + "Make the tasks available (lmms-eval downloads their data on a machine with a network) and delete "
            "leaks.parquet, remove them from evaluation.groups, or set dataset.leaks to report."
        )


def find_leaks(
    documents: Iterable[Document | TaskEnd],
    records: Iterable[tuple[Any, dict[str, Any]]],
    hashes: pd.DataFrame,
) -> Leaks:
    """Compare the documents of tasks with the samples of a dataset.

    Args:
        documents: of `coincide.evaluation.documents.read_documents`.
        records: of `coincide.dataset.duplicates.sample_records`; read after the documents.
        hashes: table of the hashes of the dataset's images.

    Returns:
        the leaks; the examples have no images of samples and no questions of samples yet (`complete_examples`).
    """
    index = PictureIndex(hashes)
    found = _read(documents, index)
    matches = _match(found, records, index)
    pairs = pd.DataFrame(matches.rows, columns=list(LEAK_COLUMNS)).astype(LEAK_COLUMNS)
    order = pairs["kind"].map(KINDS.index)
    pairs = pairs.iloc[np.lexsort((pairs["document"], order, pairs["task"]))].reset_index(drop=True)
    return Leaks(pairs, _task_table(found, matches.leaked), _examples(pairs, found))


def _read(documents, index):
    found = _Documents()
    kept_thumbnails: dict[str, int] = defaultdict(int)
    read: set[str] = set()  # two groups may have the same task
    for document in documents:
        if document.task in read:
            continue
        if isinstance(document, TaskEnd):
            read.add(document.task)
            found.ends.append(document)
            continue
        row = len(found.rows)
        text = document.texts[-1] if document.texts else ""
        found.rows.append(_Asked(document.task, document.number, text[:SHOWN_CHARACTERS], bool(document.images)))
        for form in {form for text in document.texts for form in forms(text)}:
            found.with_form[form].add(row)
        if not document.images:
            for text in document.texts:
                found.text_only[normalise(text)].add(row)
        for key, image in document.images:
            found.images[document.task].add(key)
            if image is not None and (copies := index.copies(variants(image))):
                found.copies[key] = copies
                if kept_thumbnails[document.task] < THUMBNAILS:
                    kept_thumbnails[document.task] += 1
                    found.thumbnails[key] = _thumbnail(image)
            if key in found.copies:
                found.with_image[key].append(row)
    found.text_only.pop("", None)
    return found


@dataclass
class _Matches:
    rows: list[tuple] = field(default_factory=list)  # of LEAK_COLUMNS
    leaked: set[int] = field(default_factory=set)  # rows of documents


def _match(found, records, index):
    """Compare all samples with the documents."""
    matches = _Matches()
    keys_of: dict[str, list[tuple[str, Copy]]] = defaultdict(list)  # name of a leaked image -> its images of tasks
    for key, copies in found.copies.items():
        for copy in copies:
            keys_of[index.images[copy.row]].append((key, copy))
    asking: dict[str, list[tuple]] = defaultdict(list)  # long normalised text -> samples, RARE + 1 at most
    for sample, record in records:
        names, texts = image_names(record), questions(record)
        own_forms = [form for text in texts for form in forms(text) if form in found.with_form]
        asked = set().union(*(found.with_form[form] for form in own_forms))
        shown = _match_pictures(matches, found, sample, names, keys_of, asked)
        if not names and texts:
            _add_questions(matches, found, sample, None, found.text_only.get(normalise(texts[0]), set()) - shown)
        for form in dict.fromkeys(own_forms):
            if len(form) >= LONG and len(asking[form]) <= RARE:
                asking[form].append((sample, names[0] if names else None, shown, not names))
    for form, samples in asking.items():
        rows = found.with_form[form]
        if len(rows) <= RARE and len(samples) <= RARE:
            for sample, image, shown, is_text_only in samples:
                already = found.text_only.get(form, set()) if is_text_only else set()
                _add_questions(matches, found, sample, image, rows - shown - already)
    return matches


def _match_pictures(matches, found, sample, names, keys_of, asked):
    """Add the documents that show an image of a sample; returns their rows."""
    best: dict[tuple[str, str], tuple] = {}  # (task, kind) -> what to sort by, row of LEAK_COLUMNS
    rows_of: dict[tuple[str, str], set[int]] = defaultdict(set)
    for name in dict.fromkeys(names):
        for key, copy in keys_of.get(name, ()):
            by_task: dict[str, list[int]] = defaultdict(list)
            for row in found.with_image[key]:
                by_task[found.rows[row].task].append(row)
            for task, rows in by_task.items():
                same = [row for row in rows if row in asked]
                row = (same or rows)[0]
                rows_of[task, copy.kind].update(rows)
                rank = (not same, copy.distance, row)
                if (task, copy.kind) not in best or rank < best[task, copy.kind][0]:
                    best[task, copy.kind] = (rank, row, name, copy)
    for (task, kind), ((differs, *_), row, name, copy) in best.items():
        values = (task, found.rows[row].number, sample.sample_id, sample.source, name, kind)
        count = len(rows_of[task, kind])
        matches.rows.append((*values, copy.distance, copy.mirrored, not differs, count))
    shown = set().union(*rows_of.values())
    matches.leaked |= shown
    return shown


def _add_questions(matches, found, sample, image, rows):
    """Add documents that ask a question of a sample, one row per task."""
    by_task: dict[str, list[int]] = defaultdict(list)
    for row in sorted(rows):
        by_task[found.rows[row].task].append(row)
    for task, of_task in by_task.items():
        values = (task, found.rows[of_task[0]].number, sample.sample_id, sample.source, image, SAME_QUESTION)
        matches.rows.append((*values, None, False, True, len(of_task)))
    matches.leaked |= set(rows)


def _task_table(found, leaked):
    count = pd.Series([found.rows[row].task for row in leaked], dtype="str").value_counts()
    rows = [
        (
            end.task,
            end.documents,
            len(found.images.get(end.task, ())),
            int(count.get(end.task, 0)),
            end.failed,
            end.problem,
        )
        for end in found.ends
    ]
    return pd.DataFrame(rows, columns=list(TASK_COLUMNS)).astype(TASK_COLUMNS)


def _examples(pairs, found):
    """Some pairs of each task and kind, from the nearest to the farthest."""
    row_of = {(row.task, row.number): i for i, row in enumerate(found.rows)}
    keys: dict[int, list[str]] = defaultdict(list)
    for key, rows in found.with_image.items():
        if key in found.thumbnails:
            for row in rows:
                keys[row].append(key)
    rows = []
    for (_, kind), of_kind in pairs.groupby(["task", "kind"], sort=False):
        documents = [row_of[pair] for pair in zip(of_kind["task"], of_kind["document"])]
        usable = of_kind[[kind == SAME_QUESTION or row in keys for row in documents]]
        usable = usable.drop_duplicates("document").sort_values("distance", kind="stable")
        for i in np.unique(np.linspace(0, max(len(usable) - 1, 0), EXAMPLES).astype(int))[: len(usable)]:
            pair = usable.iloc[i]
            row = row_of[pair["task"], pair["document"]]
            picture = found.thumbnails[keys[row][0]] if kind != SAME_QUESTION else None
            values = tuple(pair[name] for name in list(EXAMPLE_COLUMNS)[:6])
            rows.append((*values, found.rows[row].text, None, picture, None))
    return pd.DataFrame(rows, columns=list(EXAMPLE_COLUMNS)).astype(EXAMPLE_COLUMNS)


def complete_examples(
    leaks: Leaks, records: Iterable[tuple[Any, dict[str, Any]]], folders: ImageFolders, *, follow_links: bool = True
) -> None:
    """Add the questions and thumbnails of the samples to the examples.

    Args:
        leaks: changed in place.
        records: of `coincide.dataset.duplicates.sample_records`, at least of the samples of the examples.
        folders, follow_links: as for `coincide.dataset.images.open_image`.
    """
    images = leaks.pairs.drop_duplicates(["task", "sample_id", "kind"]).set_index(["task", "sample_id", "kind"])[
        "image"
    ]
    by_sample = {sample.sample_id: record for sample, record in records}
    texts, pictures = [], []
    for row in leaks.examples.itertuples():
        texts.append(questions(by_sample[row.sample_id])[0][:SHOWN_CHARACTERS])
        name = images[row.task, row.sample_id, row.kind]
        try:
            opened = open_image(folders, name, follow_links=follow_links) if isinstance(name, str) else None
        except ImageError:
            opened = None
        pictures.append(None if opened is None else _thumbnail(opened))
    leaks.examples["sample_question"] = pd.Series(texts, dtype="str")
    leaks.examples["sample_image"] = pd.Series(pictures, dtype="object")


def _thumbnail(image):
    image = image.copy()
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
