"""Tasks of lmms-eval that ask the held-out samples of a dataset."""

import io
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from shutil import copyfile
from typing import Any

import yaml

from coincide.base.errors import UserError
from coincide.base.files import replacing
from coincide.base.sections import HOLDOUT
from coincide.dataset.conversation import IMAGE_MARK
from coincide.dataset.images import ImageFolders, image_names, open_image
from coincide.evaluation import holdout_task

FEWEST = 20  # questions of a task; sources with fewer share one
OTHERS = "others"  # name of the task of these sources
SHORT_ANSWER = 5  # words; a task whose answers are longer at the median is scored by chrF
SHORT_TOKENS, LONG_TOKENS = 32, 256  # longest answers that are generated


class HoldoutError(UserError):
    """Held-out samples that cannot be asked."""


def write_holdout_tasks(
    records: Iterable[tuple[str, dict[str, Any]]],
    images: ImageFolders,
    output: str | Path,
    *,
    follow_links: bool = True,
) -> None:
    """Write a group of lmms-eval tasks, one per source: task files, and questions as Parquet.

    A question is the first turn of a sample. A task whose answers have at most SHORT_ANSWER words at the median is
    scored by exact match (without case and a final full stop), any other by chrF (Popović 2015), in 0..1.

    Args:
        records: (source, LLaVA record) of the held-out samples.
        images: folder that image names are relative to.
        output: folder to write.
        follow_links: as for `open_image`.

    Raises:
        HoldoutError: there are no samples.
    """
    questions = defaultdict(list)
    for source, record in records:
        questions[source].append(_question(record, images, follow_links))
    if not questions:
        raise HoldoutError("no sample is held out: raise evaluation.holdout, which is a share of each source")
    with replacing(output) as folder:
        folder.mkdir(parents=True)
        copyfile(holdout_task.__file__, folder / "utils.py")
        names = []
        for name, rows in _tasks(questions).items():
            _write_questions(rows, folder / f"{name}.parquet")
            # relative to the working folder, as all paths of a run
            task = _task(name, rows, f"{output}/{name}.parquet")
            (folder / f"{name}.yaml").write_text(task)
            names.append(name)
        (folder / f"{HOLDOUT}.yaml").write_text(yaml.safe_dump({"group": HOLDOUT, "task": names}))


def _question(record, images, follow_links):
    """The first turn of a record as a row: images, question, answer."""
    turns = record["conversations"]
    first = next(i for i, turn in enumerate(turns) if turn["from"] == "human")
    text = turns[first]["value"]
    pictures = []
    for name in image_names(record)[: text.count(IMAGE_MARK)]:
        buffer = io.BytesIO()
        open_image(images, name, follow_links=follow_links).save(buffer, "PNG")
        pictures.append({"bytes": buffer.getvalue(), "path": None})
    question = re.sub(rf"\s*{re.escape(IMAGE_MARK)}\s*", " ", text).strip()
    return {"images": pictures, "question": question, "answer": turns[first + 1]["value"]}


def _tasks(questions):
    """dict of task name -> rows: one task per source, and one for the sources with few questions."""
    tasks = defaultdict(list)
    for source, rows in questions.items():
        name = re.sub(r"[^A-Za-z0-9]+", "_", source).strip("_") if len(rows) >= FEWEST else OTHERS
        tasks[f"{HOLDOUT}_{name or OTHERS}"] += rows
    return dict(sorted(tasks.items()))


def _write_questions(rows, path):
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    features = Features({"images": List(ImageFeature()), "question": Value("string"), "answer": Value("string")})
    Dataset.from_list(rows, features=features).to_parquet(path)


def _task(name, rows, path):
    """The task file of lmms-eval."""
    lengths = sorted(len(row["answer"].split()) for row in rows)
    is_short = lengths[len(lengths) // 2] <= SHORT_ANSWER
    task: dict[str, Any] = {
        "task": name,
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"test": path}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "question",
        "doc_to_target": "answer",
        "generation_kwargs": {
            "max_new_tokens": SHORT_TOKENS if is_short else LONG_TOKENS,
            "temperature": 0,
            "do_sample": False,
        },
        "metadata": [{"version": 1.0}],
    }
    metric = "exact_match" if is_short else "chrf"
    task["metric_list"] = [{"metric": metric, "aggregation": "mean", "higher_is_better": True}]
    functions = f"doc_to_visual: !function utils.doc_to_visual\nprocess_results: !function utils.{metric}\n"
    return yaml.safe_dump(task, sort_keys=False) + functions
